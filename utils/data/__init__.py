"""The data: which images there are, read, checked, cached, and drawn into batches."""

from utils.data.images import image_size, read_image, read_mask  # noqa: F401
from utils.data.isic import CLASSES, SPLITS, Sample, read_labels, read_metadata, read_split  # noqa: F401
