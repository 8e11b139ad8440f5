"""Models as graphs: import from ONNX, operator table, interpreter, passes, legality."""
