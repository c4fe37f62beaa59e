"""Name images with an .onnx file of `mpvg export`: python onnx_inference.py best.onnx photo.png ...

It needs onnxruntime, NumPy and Pillow. Class names, mean, deviation and size of the images are read from the file.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def preprocess(file: str, about: dict[str, str]) -> np.ndarray:
    """Return an image file as the model takes it, (1, C, H, W): upright, resized and normalised as in training."""
    channels, height, width = json.loads(about["input_size"])
    mean, std = (np.array(json.loads(about[name]), np.float32) for name in ("mean", "std"))
    image = ImageOps.exif_transpose(Image.open(file)).convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, np.float32).reshape(height, width, channels) / 255
    return ((pixels - mean) / std).transpose(2, 0, 1)[None]


def main(model: str, *files: str) -> None:
    """Print the five most probable classes of each image file."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    classes = json.loads(about["classes"])
    for file in files:
        (logits,) = session.run(["logits"], {"images": preprocess(file, about)})[0]
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        print(file, ", ".join(f"{classes[i]} {shares[i]:.4f}" for i in np.argsort(-shares)[:5]), sep=": ")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
