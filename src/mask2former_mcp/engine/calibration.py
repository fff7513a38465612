"""The images whose activations set the ranges of a static quantization."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mask2former_mcp.engine import augment, loader, photos
from mask2former_mcp.engine.loader import Normalize
from mask2former_mcp.formats import images
from mask2former_mcp.formats.fault import FormatError
from mask2former_mcp.spec.experiment import Experiment

MOST = 64  # evenly spread over the folder: ranges settle long before


def scenes(spec: Experiment, size: tuple[int, int] | None) -> Iterator[Tensor]:
    """[1, 3, H, W] each, normalised; fitted into `size`, or at evaluation size. Unreadable files are passed over.

    Raises ValueError when the folder is not set, or holds no image that can be read.
    """
    folder = spec.dataset.quant_calibration_dataset.images_dir
    if not folder:
        raise ValueError(
            "dataset.quant_calibration_dataset.images_dir is empty: static quantization needs a folder of images"
        )
    try:
        paths = photos.find_images(folder)
    except ValueError as error:
        raise ValueError(str(error).replace("dataset.test.img_dir", _KEY)) from error
    normalize = Normalize(spec.dataset.pixel_mean, spec.dataset.pixel_std)
    target = loader.pair(spec.dataset.test.target_size)
    read = 0
    for path in paths[:: max(1, len(paths) // MOST)][:MOST]:
        try:
            original = images.read(path)
        except FormatError:
            continue
        view = loader.evaluation_view((original.shape[0], original.shape[1]), spec.dataset.augmentation, target, size)
        image = view.image(original)
        kept = (image.shape[0], image.shape[1])
        pixels = torch.from_numpy(np.ascontiguousarray(augment.padded(image, size or kept)))
        read += 1
        yield normalize(pixels.permute(2, 0, 1)[None], [kept], torch.device("cpu"))
    if not read:
        raise ValueError(f"{_KEY} = {folder}: none of its {len(paths)} images can be read")


_KEY = "dataset.quant_calibration_dataset.images_dir"
