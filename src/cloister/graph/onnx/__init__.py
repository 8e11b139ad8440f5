"""From ONNX, Keras and PyTorch models to graphs, and back to ONNX."""
