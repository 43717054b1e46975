"""Scale-RAE (arXiv 2601.16208): a language model whose hidden states condition a flow over SigLIP 2's latents.

Sampled by worker.py in an environment of its own, whose pins (torch 2.2, transformers 4.37) exclude the harness's.
"""
