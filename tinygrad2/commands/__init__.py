"""The commands: python -m tinygrad2 NAME. One file each; only commands import them, they may import everything."""

COMMANDS = {
    "doctor": "is everything installed that tinygrad2 needs, and does it work?",
    "launch": "start the ranks of a training under mpirun, and start them again if one dies",
    "plan": "how much memory and time would a training take?",
    "profile": "where does the time of a training step go? Time per op and layer, and a trace",
    "verify": "check, on your own data and flags, that a resumed, split or fast training is the same training",
    "convert": "convert models, tokenizers and tokens to and from Hugging Face, llm.c, nanoGPT",
    "explain": "look into a forward pass or a training step on your text: a page with the numbers of that run",
    "plot": "plot the curves of one or several runs, as an image and as HTML",
    "compare": "is my loss normal? Compare a run with the curves of the presets",
    "eval": "how good is a model? HellaSwag, or the perplexity of a text",
    "lm_eval": "the tasks of lm-evaluation-harness with a model of tinygrad2 (pip install lm_eval)",
    "lab": "exercises cut from the source, and their grader: list, start, check, hint, reset, report",
    "bug": "thirty bugs to find, planted into a copy of the source: list, plant, hint, reveal, remove",
    "replay": "repeat, under a debugger, the step in which a training computed a value that is not finite",
}
