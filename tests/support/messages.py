# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Messages and content blocks of a chat."""


def user(text):
    return {"role": "user", "content": text}


def system(text):
    return {"role": "system", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def text_block(text):
    return {"type": "text", "text": text}
