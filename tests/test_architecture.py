"""Who may import whom, how long things may be, what is never used; read from the source."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "rlmask").rglob("*.py"))
GAME_FILES = sorted((ROOT / "envs").rglob("*.py"))
TRAINERS = {"ppo", "recurrent_ppo", "dqn", "pqn", "distill"}

# A module imports from lower layers only, and from its own package.
LAYERS = (
    {"ops"},
    {"types", "kernels", "turns", "recurrent"},
    {"vector", "optim", "episodes", "layers", "config", "checkpoint", "log", "display", "scores"},
    {
        "normalize",
        "torso",
        "replay",
        "states",
        "transfer",
        "recorded",
        "charts",
        "board",
        "words",
        "attention",
        "labels",
    },
    {
        "networks",
        "recurrent_network",
        "actor_mimic",
        "joint_replay",
        "validity",
        "evaluate",
        "record",
        "flags",
        "report",
    },
    {"quantize", "set_network"},
    {"policies", "teachers", "learned_mask"},
    TRAINERS,
    {"runs"},
    {"experts"},
    {"run", "fidelity", "export"},
    {"evaluations", "jobs"},
    {"experiment", "transfer_study"},
    {"pipeline"},
    {"commands", "export_command"},
    {"cli"},
)

MAX_LINES = 350
LONG_FILES = {
    "ppo.py": "an algorithm is one file, read from top to bottom",
    "recurrent_ppo.py": "an algorithm is one file, read from top to bottom",
    "dqn.py": "an algorithm is one file, read from top to bottom",
    "pqn.py": "an algorithm is one file, read from top to bottom",
    "distill.py": "an algorithm is one file, read from top to bottom",
}
MAX_FUNCTION = 60
LONG_FUNCTIONS = {}

# What loading or checking must never use: it executes what it reads, or is gone under -O.
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_CALLS = {
    "yaml.load",
    "yaml.full_load",
    "yaml.unsafe_load",
    "yaml.load_all",
    "torch.load",
    "torch.save",
    "np.load",
    "numpy.load",
    "os.system",
    "os.popen",
}


def name_of(path):
    return str(path.relative_to(ROOT / ("envs" if path in GAME_FILES else "rlmask")))


def area(module):
    """Return `vector` for `rlmask.vector.mask`; the package itself is not an area."""
    return module.split(".")[1] if "." in module else ""


def trees(paths=FILES):
    return {path: ast.parse(path.read_text()) for path in paths}


def imports(tree, package="rlmask"):
    """Return the full names of all imported modules, wherever in the file."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a name comes from"
            found.add(node.module)
            if node.module == package:  # `from rlmask import checkpoint` imports a module
                found |= {f"{package}.{alias.name}" for alias in node.names}
    return found


def functions(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def is_public(name):
    return not name.startswith("_")


def dotted(node):
    """Return `a.b.c` for such an expression."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


@pytest.fixture(params=FILES, ids=name_of)
def source(request):
    return request.param


@pytest.fixture(params=[*FILES, *GAME_FILES], ids=name_of)
def any_source(request):
    return request.param


@pytest.fixture
def any_tree(any_source):
    return ast.parse(any_source.read_text())


@pytest.fixture
def tree(source):
    return ast.parse(source.read_text())


def test_there_are_files():
    assert {"ops/masking.py", "vector/mask.py", "ppo.py", "cli.py"} <= {name_of(f) for f in FILES}


def test_the_library_never_imports_its_games(tree):
    assert not [name for name in imports(tree) if name.split(".")[0] == "rlmask_envs"]


def test_only_vector_knows_gymnasium(source, tree):
    if name_of(source).startswith("vector/"):
        return
    gym = ("gymnasium", "gym", "pettingzoo")
    assert not [name for name in imports(tree) if name.split(".")[0] in gym]


def test_ops_are_torch_only(source, tree):
    if not name_of(source).startswith("ops/"):
        return
    allowed = {"torch", "jaxtyping", "rlmask"} | sys.stdlib_module_names
    names = imports(tree)
    assert {name.split(".")[0] for name in names} <= allowed
    assert {area(name) for name in names if name.startswith("rlmask")} <= {"ops"}


def test_a_trainer_never_imports_another(source, tree):
    if source.stem not in TRAINERS:
        return
    others = {f"rlmask.{name}" for name in TRAINERS - {source.stem}}
    assert not others & imports(tree)


def test_imports_go_down(source, tree):
    own = name_of(source).removesuffix(".py").split("/")[0]
    if own == "__init__":
        return
    levels = {name: level for level, names in enumerate(LAYERS) for name in names}
    assert own in levels, f"give {own} a place in LAYERS"
    for name in imports(tree):
        other = area(name) if name.split(".")[0] == "rlmask" else ""
        if other in levels and other != own:
            assert levels[other] < levels[own], f"{own} imports {name}"


def test_games_know_nothing_of_learning():
    for path, tree in trees(GAME_FILES).items():
        found = {name.split(".")[0] for name in imports(tree, "rlmask_envs")}
        assert not found & {"torch", "rlmask"}, path


def test_a_file_asks_to_be_two(any_source):
    lines = len(any_source.read_text().splitlines())
    assert lines <= MAX_LINES or name_of(any_source) in LONG_FILES


def test_a_function_asks_to_be_two(any_source, any_tree):
    for function in functions(any_tree):
        lines = function.end_lineno - function.lineno + 1
        name = f"{name_of(any_source)}: {function.name}"
        assert lines <= MAX_FUNCTION or name in LONG_FUNCTIONS, f"{name} has {lines} lines"


def test_the_exceptions_are_needed():
    files = {name_of(f) for f in FILES if len(f.read_text().splitlines()) > MAX_LINES}
    assert files == set(LONG_FILES)
    long = {
        f"{name_of(path)}: {function.name}"
        for path, tree in trees().items()
        for function in functions(tree)
        if function.end_lineno - function.lineno >= MAX_FUNCTION
    }
    assert long == set(LONG_FUNCTIONS)


def test_nothing_executes_what_it_reads(any_tree):
    assert not FORBIDDEN_MODULES & {name.split(".")[0] for name in imports(any_tree)}
    for node in ast.walk(any_tree):
        if isinstance(node, ast.Name):
            assert node.id not in FORBIDDEN_NAMES, f"line {node.lineno}"
        if isinstance(node, ast.Attribute):
            assert dotted(node) not in FORBIDDEN_CALLS, f"line {node.lineno}"
        if isinstance(node, ast.keyword):
            assert node.arg not in ("allow_pickle", "shell"), f"line {node.lineno}"


def test_nothing_is_gone_under_optimization(any_tree):
    assert not [node.lineno for node in ast.walk(any_tree) if isinstance(node, ast.Assert)]


def test_what_is_public_has_a_docstring(any_tree):
    def check(nodes, owner):
        for node in nodes:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef) or not is_public(node.name):
                continue
            name = f"{owner}{node.name}"
            is_protocol = isinstance(node, ast.ClassDef) and "Protocol" in map(dotted, node.bases)
            assert ast.get_docstring(node), f"{name} has no docstring"
            if isinstance(node, ast.ClassDef) and not is_protocol:
                check(node.body, f"{name}.")

    assert ast.get_docstring(any_tree) or not any_tree.body
    check(any_tree.body, "")


@pytest.mark.parametrize("name", ["utils", "util", "common", "base", "helpers", "registry", "misc"])
def test_there_is_no_drawer_for_everything(name):
    files = [*FILES, *GAME_FILES]
    assert not [path for path in files if path.stem == name or name in path.parts]


def test_test_directories_are_no_packages():
    assert not list((ROOT / "tests").rglob("__init__.py"))
