"""What a script must settle before it imports transformers."""


def without_peft() -> None:
    """Have transformers take peft for not installed, in a script that has no use for it.

    transformers 5.23 imports peft, and with it bitsandbytes, wherever it finds them (`trainer_utils.py`): two
    seconds of every start, and a warning on some processors. It has no setting for that. Not needed any more
    once transformers imports peft where it uses it.
    """
    import transformers.utils

    transformers.utils.is_peft_available = lambda: False
