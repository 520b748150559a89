"""Reads tests/vectors: a string "hex:..." stands for bytes. The working folder is the repository's."""

import json


def vectors(name):
    """The list of one file, e.g. "records"."""
    with open("tests/vectors/" + name + ".json") as file:
        return [{key: _value(value) for key, value in each.items()} for each in json.load(file)]


def _value(value):
    if isinstance(value, list):
        return tuple([_value(each) for each in value])
    if isinstance(value, str) and value.startswith("hex:"):
        return bytes.fromhex(value[4:])
    return value
