"""The house's rules: which room may import which, one door per foreign library, light imports."""

import ast
import shlex
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("certify", "surrogates", "certdef")
MAY_IMPORT = {"certify": {"certify"}, "surrogates": {"surrogates"}, "certdef": set(ROOMS)}
DOORS = {
    "timm": {"certdef/models/", "certdef/purifiers/networks/"},
    "torchattacks": {"certdef/attacks/"},
    "art": {"certdef/attacks/"},
    "diffusers": {"certdef/purifiers/networks/diffusion.py"},
    "accelerate": {"surrogates/distillation/training.py"},
    "torchmetrics": {"certdef/restoration/metrics.py"},
    "mlflow": {
        "certdef/tracking/",
        "certdef/release/",
        "certdef/models/serving.py",
        "surrogates/targets/pyfunc.py",
        "surrogates/targets/deployments.py",
    },
    "shtab": {"certdef/config/completion.py"},
    "joblib": {"certify/voting/parallel.py"},
    "matplotlib": {
        "certify/records/curves.py",
        "certify/records/picture.py",
        "certdef/report/canvas.py",
        "certdef/report/images.py",
    },
    "httpx": {"surrogates/targets/"},
    "httpcore": {"surrogates/targets/http_exchange.py", "surrogates/targets/http.py"},
    "h11": {"surrogates/targets/http_exchange.py", "surrogates/targets/http.py"},
    "requests": {"surrogates/targets/"},
    "urllib.request": {"surrogates/targets/"},
    "tenacity": {"surrogates/targets/http.py"},
    "datasets": {"certdef/data/huggingface.py"},
    "onnxruntime": {"surrogates/targets/onnx.py"},
    "ai_edge_litert": {"surrogates/targets/tflite.py"},
}


def imports(source: str) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def broken_rules(path: str, source: str) -> list[str]:
    """What a file at this path imports against the rules."""
    room = path.split("/")[0]
    broken = []
    for module in imports(source):
        top = module.split(".")[0]
        if top in ROOMS and top not in MAY_IMPORT[room]:
            broken.append(f"{path} imports {module}")
        for library, doors in DOORS.items():
            if (module == library or module.startswith(library + ".")) and not any(
                path.startswith(door) for door in doors
            ):
                broken.append(f"{path} imports {module}: only {', '.join(sorted(doors))} may")
    return broken


UNDERSCORES_OF_LIBRARIES = {"_asdict", "_replace", "_fields"}  # named tuples: public in spite of their names


def foreign_underscores(path: str, source: str) -> list[str]:
    """Names with an underscore that a file takes from elsewhere: imported, or of an object that it does not define."""
    tree = ast.parse(source)
    defines = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    own = {node.name for node in ast.walk(tree) if isinstance(node, defines)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            own.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found += [f"{path} imports {alias.name}" for alias in node.names if private(alias.name)]
        elif isinstance(node, ast.Attribute) and private(node.attr) and node.attr not in own:
            found.append(f"{path}:{node.lineno} uses .{node.attr}")
    return found


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in UNDERSCORES_OF_LIBRARIES


def import_graph() -> dict[str, set[str]]:
    """Which file imports which of ours, anywhere in it, also for types only; faces only hand names on."""
    modules = {
        path.removesuffix(".py").replace("/", "."): path
        for path in files()
        if not path.endswith("__init__.py")
    }
    return {
        path: {modules[name] for name in imports((ROOT / path).read_text()) if name in modules} - {path}
        for path in modules.values()
    }


def rooms_of(graph: dict[str, set[str]], package: str) -> dict[str, set[str]]:
    """The same between the folders and top files of a package."""

    def room(path: str) -> str:
        return path.split("/")[1]

    inside = [path for path in graph if path.startswith(f"{package}/")]
    found: dict[str, set[str]] = {room(path): set() for path in inside}
    for path in inside:
        found[room(path)] |= {room(other) for other in graph[path] if other in inside} - {room(path)}
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of the graph, if there is one."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def files() -> list[str]:
    return [str(path.relative_to(ROOT)) for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def test_every_file_keeps_the_rules():
    assert len(files()) > 20
    broken = [rule for path in files() for rule in broken_rules(path, (ROOT / path).read_text())]
    assert not broken, "\n".join(broken)


def test_nobody_takes_a_private_name_from_elsewhere():
    found = [each for path in files() for each in foreign_underscores(path, (ROOT / path).read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "from certify.voting.engine import _eval_mode",
        "from certify.voting import engine\nengine._eval_mode()",
        "def f(ledger):\n    return ledger._store.plan()",
    ],
)
def test_the_check_sees_a_private_name_from_elsewhere(source):
    assert foreign_underscores("certdef/x.py", source)
    assert not foreign_underscores(
        "certdef/x.py", "class A:\n    def f(self):\n        self._x = 1\n        return self._x"
    )


def test_no_files_and_no_rooms_import_each_other_in_a_circle():
    graph = import_graph()
    assert sum(map(len, graph.values())) > 200
    assert not circle(graph)
    for package in ROOMS:
        assert not circle(rooms_of(graph, package)), package


def test_the_check_sees_a_circle():
    planted = import_graph() | {"certify/errors.py": {"certify/smoothing.py"}}
    assert circle(planted)
    planted = import_graph()
    planted["certdef/config/job.py"] = planted["certdef/config/job.py"] | {"certdef/stages/job.py"}
    assert circle(rooms_of(planted, "certdef"))


def test_the_number_of_rooms():
    graph = import_graph()
    assert len(rooms_of(graph, "certify")) <= 12
    assert len(rooms_of(graph, "certdef")) <= 14


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("certify/voting/engine.py", "import surrogates"),
        ("certify/voting/engine.py", "def f():\n    from certdef.data import load_data"),
        ("surrogates/ledger/ledger.py", "from certify.noise import Gaussian"),
        ("certify/voting/engine.py", "import mlflow"),
        ("certdef/pipeline/verbs.py", "def f():\n    import torchattacks"),
        ("certdef/stages/surrogate.py", "from timm.models import vision_transformer"),
        ("certdef/report/page.py", "from matplotlib import pyplot"),
    ],
)
def test_the_check_sees_a_broken_rule(path, source):
    assert broken_rules(path, source)


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('MODULES', *sorted({{name.split('.')[0] for name in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split("MODULES", 1)[1].split())


@pytest.mark.parametrize("room", ROOMS)
def test_importing_a_room_is_light(room):
    loaded = loaded_by(f"import {room}")
    assert not loaded & {
        "mlflow",
        "timm",
        "pandas",
        "matplotlib",
        "sklearn",
        "torchattacks",
        "diffusers",
        "accelerate",
    }, loaded


def test_importing_certdef_and_asking_for_help_load_no_torch():
    assert not loaded_by("import certdef") & {"torch", "numpy"}
    for arguments in (["--help"], ["run", "--help"], ["run", "--print-config"]):
        loaded = loaded_by(f"from certdef.cli import main\nassert main({arguments}) == 0")
        assert not loaded & {"torch", "numpy", "mlflow", "pandas"}, arguments


# A command, and below it a part of each line that is said of it.
TYPOS = """
rnu
    did you mean 'run'
run --preset digts
    did you mean 'digits'
run --certify.alhpa=0.1 --certify.n=many
    did you mean 'certify.alpha'
    certify.n is many: use a whole number
run --purifier=de4 --certify.n=2000
    did you mean 'de3'
run --surrogate.model=rsenet
    surrogate.model: unknown model 'rsenet' (did you mean 'resnet'
run --nim.weights=leavs
    did you mean 'leaves'
run --certify.alpha=2
    use a value in (0, 0.5)
run --device=gpu --purifier=xyz --target.kind=resnet81 --data.name=digts --data.color=grey \
  --certify.method=fixd --certify.bound=clopper --certify.guide=of --certify.backend=ry \
  --certify.engine=fast --nim.precision=float23 --blind_spot.images=naturl --surrogate.strategy=kcentr \
  --surrogate.loss=l11 --surrogate.noise=certifed --surrogate.features=studnt \
  --surrogate.precision=float23 --reversal.tasks=[rotaton]
    use auto, cpu or cuda
    use one of agdm, blind-spot,
    unknown model 'resnet81' (did you mean 'resnet18'
    did you mean 'digits'
    did you mean 'gray'
    did you mean 'fixed'
    mean 'clopper_pearson'
    use off, decide or budget (did you mean 'off'
    did you mean 'ray'
    use plain or auto
    nim.precision is 'float23'
    did you mean 'natural'
    did you mean 'kcenter'
    did you mean 'l1'
    did you mean 'certified'
    did you mean 'student'
    surrogate.precision is
    did you mean 'rotation'
run --certify.n=5 --n0=0 --choose=sometimes --seed=-1 '--certify.laws=[{label: a/b}]'
    certifies nothing below n=10
    certify.n0 is 0
    use off, auto, or a list
    seed is -1
    certify.laws has the label 'a/b'
attack --ladder --ladder.systems=[gss,de3] --ladder.threats=[pach]
    gss is no purifier
    did you mean 'patch'
certify --target.uri=m.onnx --data.path=x --purifier=de4
    did you mean 'de3'
certify --target.uri=m.onnx --data.path=x --target.dtype=flot32 --target.protocol=mflow \
  --target.layout=nchw
    did you mean 'float32'
    did you mean 'mlflow'
    did you mean 'chw'
certify --threat brightnes --alpha=2
    did you mean 'brightness'
    use a value in (0, 0.5)
certify --threat patch --fill grey
    did you mean 'gray'
distill --budgets 99 --strategies random,margn
    did you mean 'margin'
robustness --corruptions [noise,brigthness]
    did you mean 'brightness'
robustness --robustness.q=2
    robustness.q is 2.0: use a share
ledger nowhere.db
    ledger nowhere.db does not exist
compare KEY.yaml nowhere --fail-if 'certfied@0.5 < 0.9' --alpha 2 --max-drop 3 --radii 1,x --json nowhere/x
    NEW 'nowhere' is not there
    did you mean 'certified'
    --alpha is 2
    --max-drop is 3
    --radii is '1,x'
    --json is 'nowhere/x'
evidence nowhere --ledger none.db --format htlm --radii x
    'nowhere' is not there
    --ledger is 'none.db'
    did you mean 'html'
    --radii is 'x'
run --config KEY.yaml
    unknown key 'certify.metod' (did you mean 'certify.method'?)
run --config VALUE.yaml
    certify.method is 'fixd'
    unknown data set 'digts'
"""


def typos() -> list[tuple[list[str], list[str]]]:
    table: list[tuple[list[str], list[str]]] = []
    for line in TYPOS.strip().splitlines():
        if line.startswith("    "):
            table[-1][1].append(line.strip())
        else:
            table.append((shlex.split(line), []))
    return table


def test_a_typo_is_answered_without_torch(tmp_path):
    """Torch takes seconds to load. All in one process: what one of them loads is there for all that follow."""
    (tmp_path / "KEY.yaml").write_text("certify: {metod: fixed}")
    (tmp_path / "VALUE.yaml").write_text("certify: {method: fixd}\ndata: {name: digts}")
    loaded = loaded_by(
        f"""
import contextlib, io, os
from certdef.cli import main
os.chdir({str(tmp_path)!r})
for arguments, words in {typos()!r}:
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        assert main(arguments) == 2, arguments
    lines = said.getvalue().splitlines()
    assert len(lines) == len(words), (arguments, lines)
    for each in words:
        assert sum(each in line for line in lines) == 1, (each, lines)
    assert "torch" not in sys.modules, arguments
"""
    )
    assert not loaded & {"torch", "numpy", "timm", "mlflow", "pandas"}


def test_the_evaluator_that_mlflow_loads_beside_every_other_loads_no_torch():
    loaded = loaded_by("from certdef.release.evaluator import CertdefEvaluator")
    assert "mlflow" in loaded
    assert not loaded & {"torch", "torchvision", "timm"}


def test_the_check_of_light_imports_sees_a_heavy_one():
    assert "torch" in loaded_by("import certify")


def test_every_package_is_typed():
    assert all((ROOT / room / "py.typed").is_file() for room in ROOMS)


def test_modules_are_found_under_their_names_of_version_0_1():
    from certdef.serving import scoring_app
    from certdef.storage import load_model

    from certdef.models import serving, storage
    from certdef.purifiers import diffusion as former
    from certdef.purifiers.networks import diffusion
    from certdef.purifiers.one_step import OneStep

    assert (scoring_app, load_model) == (serving.scoring_app, storage.load_model)
    assert (former.load_pretrained, former.OneStep) == (diffusion.load_pretrained, OneStep)
    with pytest.raises(AttributeError, match="no attribute 'TwoSteps'"):
        _ = former.TwoSteps


def test_public_names():
    import certdef
    import certify
    import surrogates

    for name in (
        "ABSTAIN",
        "Gaussian",
        "GaussianScaleMixture",
        "nim_noise",
        "Laplace",
        "Uniform",
        "binomial_lower_bound",
        "certify_votes",
        "SmoothedClassifier",
        "Certificate",
    ):
        assert hasattr(certify, name), name
    for name in (
        "open_target",
        "QueryLedger",
        "distill",
        "fidelity",
        "Target",
        "Answers",
        "Surrogate",
        "Fidelity",
    ):
        assert hasattr(surrogates, name), name
    for name in (
        "run",
        "pretrain",
        "distill",
        "certify",
        "attack",
        "purify",
        "report",
        "serve",
        "doctor",
        "cite",
        "load_config",
    ):
        assert callable(getattr(certdef, name)), name
    assert certify.ABSTAIN == -1
    assert {"NIM", "DeCubed"} <= set(certdef.purifiers.__all__)
