"""A comparison that another process imports: it may take for ever, or end its process."""

import os
import time


def same_text(reference: str, answer: str) -> bool | None:
    if answer == "endless":
        time.sleep(600)
    if answer == "dead":
        os._exit(1)
    return reference == answer
