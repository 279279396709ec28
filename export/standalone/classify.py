"""Classifies pictures on a board with ai-edge-litert, numpy and pillow: python classify.py MODEL.tflite PICTURE…"""

import sys
import time
import zipfile

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image, ImageOps

model, *pictures = sys.argv[1:] or sys.exit(__doc__)
interpreter = Interpreter(model, num_threads=4)
interpreter.allocate_tensors()
images, scores = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
_, height, width, _ = images["shape"]
labels = zipfile.ZipFile(model).read("labels.txt").decode().splitlines()
for name in pictures:
    picture = ImageOps.exif_transpose(Image.open(name)).convert("RGB")
    if picture.size != (width, height):  # Cut to the model's proportions, then brought to its size.
        picture = ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture, "float32")[None]  # 0 to 255: the model normalises.
    if images["quantization"][0]:
        limits = np.iinfo(images["dtype"])
        pixels = np.rint(pixels / images["quantization"][0] + images["quantization"][1]).clip(limits.min, limits.max)
    start = time.perf_counter()
    interpreter.set_tensor(images["index"], pixels.astype(images["dtype"]))
    interpreter.invoke()
    logits, milliseconds = interpreter.get_tensor(scores["index"])[0], 1e3 * (time.perf_counter() - start)
    if scores["quantization"][0]:
        logits = (logits.astype("float32") - scores["quantization"][1]) * scores["quantization"][0]
    chances = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    best = [f"{labels[i]} {chances[i]:.4f}" for i in np.argsort(-chances, kind="stable")[:5]]
    print(name, *best, f"{milliseconds:.2f} ms", sep="\t")
