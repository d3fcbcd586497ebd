"""The GPT-2 that others have, in both directions: models, tokenizers.

    pretrained.py          a model on disk, told by its content
    hf.py                  Hugging Face's folder and model.safetensors
    llmc.py                llm.c's models and debug states
    nanogpt.py             nanoGPT's ckpt.pt; torchfile.py and zipped.py: what torch.save writes, and the zip around it
    tokenizer_files.py     tokenizers of OpenAI, Hugging Face, tiktoken and llm.c; tokenizer_out.py writes them
"""
