"""The HTTP side: routing, auth, tokenization, chat templates, streaming. CPU only, never touches the accelerator.

May import plans and the engine protocol; never torch.
"""
