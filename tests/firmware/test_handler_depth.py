"""How deep the handler's calls go, from the syntax trees: every branch counts, taken in a test or not."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
MAX_FRAMES = 6  # NimBLE leaves about 4 KiB of C stack; 10 frames have been seen to overflow it
ENTRY = ("firmware/radio.py", "Radio", "_on_event")

# What the attributes on this path hold; methods of anything else are C.
HOLDS = {
    "_gateway": ("gateway/gateway.py", "Gateway"),
    "journal": ("gateway/journal.py", "Journal"),
    "_clock": ("firmware/clock.py", "Clock"),
    "_bonds": ("firmware/bonds.py", "Bonds"),
    "_stream": ("gateway/stream.py", "Stream"),
    "_flash": ("firmware/flash.py", "PartitionFlash"),
}
OF_C = {"_adverts", "_ble", "_events", "_links", "handles", "_lock", "_partition", "_ready", "_secrets"}
PYTHON_OF_THE_PORT = {"_flag"}  # asyncio.ThreadSafeFlag: one frame

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Tree:
    """A file: its functions, its classes' methods and properties, and what it imports from ours."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.functions: dict[tuple[str, str], Function] = {}
        self.properties: set[str] = set()
        self.imports: dict[str, str] = {}
        for node in ast.parse((ROOT / path).read_text()).body:
            if isinstance(node, Function):
                self.functions["", node.name] = node
            elif isinstance(node, ast.ClassDef):
                for each in node.body:
                    if isinstance(each, Function):
                        self.functions[node.name, each.name] = each
                        if each.decorator_list:
                            self.properties.add(each.name)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in (
                "gateway",
                "firmware",
            ):
                for alias in node.names:
                    self.imports[alias.name] = (node.module or "").replace(".", "/") + ".py"


def test_handler_path_is_at_most_six_frames_deep() -> None:
    chain = _deepest(*ENTRY)
    assert len(chain) <= MAX_FRAMES, " > ".join(chain)


def test_the_count_sees_what_lies_deepest() -> None:
    assert _deepest(*ENTRY)[-1] in {"program", "read", "seal"}  # the flash below the Journal, or the CRC
    assert len(_deepest("gateway/journal.py", "Journal", "append_frame")) == 4  # as its docstring promises


def frames() -> int:
    """How many frames deep the handler goes."""
    return len(_deepest(*ENTRY))


def _deepest(path: str, owner: str, name: str) -> list[str]:
    tree = Tree(path)
    function = tree.functions.get((owner, name))
    if function is None:  # of C: int(), len(), a class of Python's own
        return []
    below: list[str] = []
    for node in ast.walk(function):
        for callee in _callees(tree, owner, node):
            below = max(below, callee, key=len)
    return [name, *below]


def _callees(tree: Tree, owner: str, node: ast.AST) -> list[list[str]]:
    if isinstance(node, COMPREHENSIONS):  # MicroPython calls it like a function
        inner = [
            callee
            for each in ast.iter_child_nodes(node)
            for below in ast.walk(each)
            for callee in _callees(tree, owner, below)
        ]
        return [["<comprehension>", *max(inner, key=len, default=[])]]
    if isinstance(node, ast.Attribute) and node.attr in tree.properties:
        return [_deepest(tree.path, owner, node.attr)]
    if not isinstance(node, ast.Call):
        return []
    called = node.func
    if isinstance(called, ast.Name):
        return [_deepest(tree.imports.get(called.id, tree.path), "", called.id)]
    assert isinstance(called, ast.Attribute)
    holder = called.value
    if isinstance(holder, ast.Name):
        return [_deepest(tree.path, owner, called.attr)] if holder.id == "self" else []
    if isinstance(holder, ast.Attribute):
        if holder.attr in HOLDS:
            return [_deepest(*HOLDS[holder.attr], called.attr)]
        if holder.attr in PYTHON_OF_THE_PORT:
            return [[f"{holder.attr}.{called.attr}"]]
        assert holder.attr in OF_C, f"{tree.path}: what is {holder.attr}?"
    return []
