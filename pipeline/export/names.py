"""The formats that a student is exported in. Nothing here imports torch."""

FORMATS = ("onnx", "onnx-fp16", "onnx-int8", "pt2", "aoti", "safetensors")
EXACT = ("onnx", "pt2", "aoti", "safetensors")
"""With the student's own weights and arithmetic; others may differ, and are held to the distance of their images."""
SUFFIXES = {"onnx": ".onnx", "onnx-fp16": "-fp16.onnx", "onnx-int8": "-int8.onnx", "pt2": ".pt2", "aoti": "-aoti.pt2"}
PARITY = "parity.json"
"""What was found of each file, beside them."""
