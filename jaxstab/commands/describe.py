"""main.py describe --config=..."""

from jaxstab.commands.base import Call, Command


def _run(call: Call) -> None:
    from jaxstab import data
    from jaxstab.train.describe import show

    config = call.config()
    if config.model.vocabulary == 0:
        tokenizer = data.load_tokenizer(config.data.tokenizer, config.data.end_token)
        config = config.with_vocabulary(tokenizer.vocabulary)
    show(config)


COMMAND = Command("prints what a config trains: a row per stored parameter, and their exact number", _run)
