"""A method's name stands in its own file and in the file of its registry, and nowhere else.

What other rooms have to know of a method, the method declares: `Projection.shrinks`, `Placement.norms`,
`Method.constant`. Advice for people may name one, as in "optimizer.projection.method=qk_clip", and
a family of models from elsewhere names those that it is made of, as a config does.
"""

import ast
import inspect
from pathlib import Path

import jaxstab
from jaxstab.train.document import REGISTRIES

PACKAGE = Path(jaxstab.__file__).parent
FILES = [*sorted(set(PACKAGE.rglob("*.py")) - set(PACKAGE.glob("exchange/families/*.py"))), PACKAGE.parent / "main.py"]
# Registered names that are words with other meanings: these count only beside the key that chooses a method.
WORDS = {
    *("identity", "he", "small", "normal", "plain", "unit", "scaled", "detach", "pre", "post", "reordered", "none"),
    *("global_norm", "linear", "constant", "rmsnorm", "layernorm"),
}


def homes():
    """{name: the files that may have it}, of every registered method."""
    found = {}
    for _, registry in REGISTRIES.values():
        declared_in = {path for path in FILES if mentions(path, registry)}
        assert declared_in, f"no file has a registry of {', '.join(registry)}"
        for name, function in registry.items():
            found.setdefault(name, set()).update(declared_in, {Path(inspect.getsourcefile(function))})
    return found


def mentions(path, registry):
    """Whether a file writes the registry down: a dict of all of its names."""
    text = path.read_text()
    if not all(f'"{name}"' in text for name in registry):
        return False
    dicts = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Dict))
    return any({key.value for key in node.keys if isinstance(key, ast.Constant)} == set(registry) for node in dicts)


def named(tree):
    """(line, name) for every method that a file's code names."""
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for statement in ast.walk(tree):
        if not isinstance(statement, ast.stmt) or is_docstring(statement):
            continue
        header = list(of_itself(statement))
        chooses = any(is_choice(node) for node in header)
        for node in header:
            for name in names_in(node):
                if chooses if name in WORDS else name not in own:
                    yield statement.lineno, name


def of_itself(statement):
    """The nodes of a statement without the statements within it."""
    for child in ast.iter_child_nodes(statement):
        if not isinstance(child, ast.stmt):
            yield from (child, *of_itself(child))


def is_docstring(statement):
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def is_choice(node):
    """Whether an expression is a chosen method: `config.init.method`, or "init.method" as a key of a saved config."""
    is_key = isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith(".method")
    return is_key or (isinstance(node, ast.Attribute) and node.attr == "method")


def names_in(node):
    """The identifiers that a node has, or the parts of a string that is a name or a dotted key, not a text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value.split(".") if all(part.isidentifier() for part in node.value.split(".")) else []
    values = (getattr(node, field, None) for field in ("id", "attr", "arg", "name"))
    return [value for value in values if isinstance(value, str)]


def test_methods_are_named_in_their_own_file_and_their_registry_alone():
    allowed = homes()
    elsewhere = [
        f"{path.relative_to(PACKAGE.parent)}:{line} names {name}"
        for path in FILES
        for line, name in named(ast.parse(path.read_text()))
        if name in allowed and path not in allowed[name]
    ]
    assert not elsewhere, "let the method declare what is asked of it: " + ", ".join(elsewhere)


def test_the_search_finds_names_and_lets_texts_be():
    code = '''
"""wesar in a docstring."""
def f(config, saved):
    """wesar"""
    if config.init.method == "small":
        size = "small"
    if saved.get("model.embedding.method") in ("plain", "layer_norm"):
        return {"qk_clip": 1}
    return saved["reparam.wesar.sigma"], config.optimizer.rule.adamw.b1, "init.method=megatron", "none"
'''
    names = ["small", "layer_norm", "plain", "qk_clip", "adamw", "wesar"]
    assert [name for _, name in sorted(named(ast.parse(code))) if name in homes()] == names
