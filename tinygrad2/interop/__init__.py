"""Interoperability: models of Hugging Face, llm.c and nanoGPT, read and written.

    pretrained.py          a model on disk, recognized by its content
    hf.py                  Hugging Face's folder with model.safetensors
    llmc.py                llm.c's models and debug states
    nanogpt.py             nanoGPT's ckpt.pt
    shapes.py              the tensors of a GPT by its config, which all of them check
"""
