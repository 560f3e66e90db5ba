"""Readers of models: Hugging Face directories, GGUF files, bare configurations; and the tracer.

Each gives a `ModelSource`: configuration, checkpoint tensors, how parameters are made from them, tokenizer.
"""
