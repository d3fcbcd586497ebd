"""Models of other programs, read and written: Hugging Face, llm.c, nanoGPT.

    pretrained.py          a model on disk, told by its content
    hf.py                  Hugging Face's folder and model.safetensors
    llmc.py                llm.c's models and debug states
    nanogpt.py             nanoGPT's ckpt.pt
    shapes.py              what all of them check
"""
