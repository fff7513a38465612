"""How running out of memory is recognised, and what to say then. Needs no torch: every verb's failure passes here."""

ADVICE = (
    "What helps, best first: a smaller dataset.train.batch_size; a smaller dataset.augmentation.train_crop_size (or"
    " test_max_size when validating); train.activation_checkpoint=true; train.precision=bf16 or fp16 on a GPU; a"
    " smaller backbone or fewer queries."
)


def ran_out(error: BaseException) -> bool:
    """Whether this is how Python, CUDA or PyTorch's CPU allocator say that there is no more memory."""
    text = str(error)
    return isinstance(error, MemoryError) or "out of memory" in text.lower() or "can't allocate memory" in text


def cause(error: BaseException) -> str:
    """The first line of what was said, as a sentence."""
    return next(iter(str(error).splitlines()), "nothing more could be allocated").rstrip(". ") + "."


def explain(error: BaseException) -> str:
    return f"Out of memory: {cause(error)} {ADVICE}"
