"""Work of version 0.1.0, found again: there a stage was named by more than what decides its result.

Its folders are renamed when the stage is first looked up, its receipts and MLflow runs go on under their new names.
Every formula here is frozen: it must stay what version 0.1.0 computed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from certdef.config.job import CERTIFY_ELSEWHERE, RunConfig
from certdef.config.membership import MembershipConfig
from certdef.config.own_target import NONE
from certdef.config.robustness import RobustnessConfig
from certdef.tracking.checked_json import fingerprint, read_json
from certdef.tracking.workspace import Stage
from surrogates.files import replacing

VERSION = "0.1.0"
FORMERLY = "formerly"  # the file that keeps what identified an adopted stage
# What a network's weights were known not to depend on, by the section of its configuration.
USED_LATER = {
    "blind_spot": ("iterations",),
    "reversal": ("eps", "steps", "step_255"),
    "diffusion": ("t", "steps", "grid", "choice_images", "guidance", "robust_epochs", "robust_diffused"),
}
# Options that came later: where they are as they are by default, a job is the one that it was without them.
NEWER = {
    "data": ("columns", "images_key", "labels_key", "labels", "resize", "color", "pool_copies"),
    "target": ("color", "resize", "headers"),
    "ledger": ("preflight",),
    "nim": ("tile", "keep", "finetune_epochs"),
    "certify": ("known_class", "bound", "engine", "choose", "choice_images", "choice_n", "baseline"),
    "surrogate": ("noise", "consistency", "entropy", "finetune_epochs", "weights"),
    "diffusion": ("robust_diffused",),
    "ladder": ("restarts", "students", "processes", "threats"),
    "tracking": ("register_parts",),
}
# Whole sections that came later, likewise.
NEWER_SECTIONS = {"membership": MembershipConfig(), "robustness": RobustnessConfig()}
# What rests on the certified surrogate, which was then the one that agrees.
OF_CERTIFIED = ("certify", "served", "ladder", "comparison", "membership")
LADDER_ELSEWHERE = ("smoothed_images", "smoothed_draws", "enabled", "systems")
CURVE = ("smoothed_images", "smoothed_draws")


def runs_file(config: RunConfig, uri: str) -> Path:
    """Where a job keeps the names of its MLflow runs; those of a job of version 0.1.0 are taken over."""
    folder, plain = config.workspace / "jobs", config.to_dict()
    plain |= {name: _section(config, name) for name in NEWER}
    for name, unset in NEWER_SECTIONS.items():
        if getattr(config, name) == unset:
            del plain[name]
    path = folder / f"{fingerprint(plain, uri)}.json"
    plain.pop("udc", None)
    plain["target"]["quantise"] = plain["target"].pop("quantize", None)
    old = folder / f"{fingerprint(plain, uri)}.json"
    if old.is_file() and not path.is_file():
        old.rename(path)
    return path


class Legacy:
    """The names that version 0.1.0 gave to the stages of a job.

    Args:
        config: The job.
        device: Type of its device.
        uri: Its tracking store.

    Attributes:
        target: Identity of the target; the job says which it is, once it is opened.
        draws: Draws an image that the certification budget allows the target; the job says how many.
    """

    def __init__(self, config: RunConfig, device: str, uri: str):
        self.config, self.device, self.uri = config, device, uri
        self.target, self.draws = self.trained_target, 0

    @property
    def base(self) -> list[Any]:
        """What every stage was taken to depend on."""
        target, form = self.config.target, _form(self.config)
        own = [form] if target.uri and form else []
        return [_section(self.config, "data"), target.uri, self.config.seed, self.device, *own]

    @property
    def trained_target(self) -> str:
        """Identity of a target that certdef trained."""
        return f"{self.config.target.kind}:{fingerprint(*self.base, self.config.target.training)}"

    def adopt(self, stage: Stage) -> None:
        """Give a stage the folder that version 0.1.0 left of it, if there is one and it has none yet."""
        if stage.path.exists() or self._is_of_another_surrogate(stage.name):
            return
        name = self.fingerprint(stage.name)
        old = stage.path.with_name(f"{stage.name}-{name}")
        if name is None or not old.is_dir():
            return
        for path in old.glob(
            "records/*.jsonl"
        ):  # an unfinished record goes on only under its own configuration
            header, line, rows = path.read_bytes().partition(b"\n")
            with replacing(path) as file:
                file.write(header.replace(name.encode(), stage.fingerprint.encode()) + line + rows)
        (old / FORMERLY).write_text(name)
        old.rename(stage.path)
        stage.reused = stage.done

    def _is_of_another_surrogate(self, name: str) -> bool:
        """Whether the result of then rests on another surrogate than is certified now; its paid answers stay paid."""
        surrogate = self.config.surrogate
        if surrogate.noise != "certified" or surrogate.model == NONE:
            return False
        return name in OF_CERTIFIED or name.startswith("surrogate-overlap")

    def fingerprint(self, name: str) -> str | None:
        """What identified a stage; None for a stage that version 0.1.0 did not have."""
        key = self._key(name)
        return None if key is None else fingerprint(name, VERSION, *self.base, *key)

    def experiment(self, name: str, condition: str = "") -> list[str]:
        """Under which names the receipts of a stage may be kept: that of this job, and of those that left a folder."""
        stages = dict.fromkeys([self.fingerprint(name)])
        for folder in sorted(self.config.workspace.glob(f"{name}-" + "[0-9a-f]" * 16)):
            former = folder / FORMERLY
            stages[former.read_text() if former.is_file() else folder.name.removeprefix(f"{name}-")] = None
        return [f"{stage}/{condition}" if condition else stage for stage in stages if stage is not None]

    def _key(self, name: str) -> list[Any] | None:
        config, law = self.config, self.config.certify.laws[0]
        if config.certify.candidates and name in ("certify", "served"):
            return None  # that version chose no noise: what it certified is not what this job does
        match name.split("-")[0]:
            case "target":
                own = [config.target.uri, _form(config)]
                return [config.target.training if config.target.uri is None else own, self.uri]
            case "surrogate" if name == "surrogate":
                encoder = (
                    [config.nim.settings]
                    if "nim" in (config.surrogate.model, config.surrogate.features)
                    else []
                )
                return [config.surrogate.agreeing, config.ledger.training, self.target, asdict(law), *encoder]
            case "certify":
                if config.certify.engine != "plain":
                    return None  # version 0.1.0 knew no other
                return [self._certify(), self.draws, *self._before(config.purifier)]
            case "attack":
                return [asdict(config.attack), *self._before(config.purifier)]
            case "served":
                return [self._certify(), config.registered_model, *self._before(config.purifier)]
            case "ladder":
                return self._ladder(name.removeprefix("ladder").removeprefix("-"))
            case "purifier":
                purifier = name.removeprefix("purifier-")
                networks = self._networks(purifier)
                return [self._settings(purifier), *self._all("surrogate", *networks)]
        return self._ducd(name) or self._network(name)

    def _network(self, name: str) -> list[Any] | None:
        config = self.config
        laws = {f"-{law.label}": law for law in config.certify.laws} | {"": config.certify.laws[0]}
        kind = next((each for each in ("nim-simmim", "nim", "blind-spot") if name.startswith(each)), "")
        law = laws.get(name.removeprefix(kind))
        if kind == "blind-spot" and name != kind:
            return [self._weights("blind_spot"), asdict(law)] if law else None
        if kind.startswith("nim"):
            return [config.nim.settings, asdict(law)] if law else None
        adversarial = max(*config.attack.eps[:1], 1 / 255, 0)
        denoised = ["nim"] if "denoising" in config.reversal.tasks else []
        diffusion = config.diffusion
        if name == "robust" and diffusion.robust_diffused:
            return (
                None  # version 0.1.0 diffused nothing: that is another network, and what rests on it is too
            )
        tuned: list[Any] = [
            list(diffusion.grid),
            diffusion.steps,
            diffusion.choice_images,
            max(config.attack.eps, default=0),
        ]
        known: dict[str, Callable[[], list[Any]]] = {
            "mim": lambda: [config.nim.settings],
            "blind-spot": lambda: [self._weights("blind_spot"), asdict(config.gs)],
            "tasks": lambda: [self._weights("reversal"), *self._all("surrogate", *denoised)],
            "diffusion": lambda: [self._weights("diffusion")],
            "robust": lambda: [*self._all("surrogate"), adversarial, diffusion.robust_epochs],
            "uad-step": lambda: [*tuned, config.attack.steps, *self._all("surrogate", "diffusion")],
        }
        return known[name]() if name in known else None

    def _networks(self, purifier: str) -> list[str]:
        """The stages of a purifier's networks, in the order in which they were trained."""
        first, *others = self.config.certify.laws
        denoised = ["nim"] if "denoising" in self.config.reversal.tasks else []
        return {
            "de3": ["nim", *(f"nim-{law.label}" for law in others)],
            "de3-simmim": ["nim-simmim", *(f"nim-simmim-{law.label}" for law in others)],
            "mim": ["mim"],
            "ncis": ["blind-spot"],
            "blind-spot": [f"blind-spot-{law.label}" for law in (first, *others)],
            "reversal": [*denoised, "tasks"],
            "one-step": ["diffusion"],
            "diffpure": ["diffusion"],
            "uad-rs": ["diffusion", "uad-step"],
            "agdm": ["robust", "diffusion"],
        }.get(purifier, [])

    def _settings(self, purifier: str) -> dict[str, Any]:
        config, gs, reversal = self.config, asdict(self.config.gs), self.config.reversal
        chain = {"t": config.diffusion.t, "steps": config.diffusion.steps}
        if purifier == "uad-rs":
            chain |= {"t": self._uad_step()}
        return {
            "gs": gs,
            "ncis": gs | {"iterations": config.blind_spot.iterations},
            "blind-spot": {},
            "reversal": {
                "tasks": list(reversal.tasks),
                "eps": reversal.eps,
                "steps": reversal.steps,
                "step": reversal.step_255 / 255,
            },
            "one-step": {},
            "diffpure": chain,
            "uad-rs": chain,
            "agdm": chain | {"scale": config.diffusion.guidance},
        }.get(purifier, {"sigma": config.attack.sigma_255 / 255})

    def _uad_step(self) -> int | None:
        """The step that UAD-RS chose, wherever its stage stands now."""
        for path in self.config.workspace.glob("uad-step-*/result.json"):
            return read_json(path)["params"]["t"]
        return None

    def _ladder(self, purifier: str) -> list[Any]:
        config = self.config
        if purifier:
            then = _section(config, "ladder")
            plain = {key: value for key, value in then.items() if key not in LADDER_ELSEWHERE}
            kept = [] if purifier == "none" else [*self._networks(purifier), f"purifier-{purifier}"]
            return [plain, *self._all("surrogate", *kept)]
        certified = {name: getattr(config.certify, name) for name in ("n0", "n", "alpha", "radii")}
        certified |= {name: getattr(config.ladder, name) for name in CURVE} | {
            "law": asdict(config.certify.laws[0])
        }
        systems = dict.fromkeys(["none", config.purifier, *config.ladder.systems])
        return [certified, self._before(config.purifier), self._all(*(f"ladder-{name}" for name in systems))]

    def _ducd(self, name: str) -> list[Any] | None:
        config, ducd = self.config, self.config.ducd
        if not ducd.enabled:
            return None
        overlaps = {f"surrogate-overlap-{100 * each:g}".replace(".", "_"): each for each in ducd.overlaps}
        students = self._all(*overlaps) if name not in overlaps else []
        if name in overlaps:
            return [config.surrogate.agreeing, overlaps[name], self.target]
        if name == "noise":
            return [self._noises(), ducd.choice_images, ducd.choice_n, self._certify(), students[0]]
        if name == "comparison":
            noise = self.config.workspace.glob("noise-*/result.json")
            chosen = next((read_json(path)["chosen"] for path in noise), None)
            return [self._certify(), self.draws, chosen, *self._all("noise"), *students]
        if name == "references":
            split = [ducd.candidates, ducd.population, ducd.references]
            return [config.surrogate.model, config.target.epochs, *split]
        if name == "membership":
            audit = [ducd.candidates, ducd.population, ducd.rmia_a]
            return [*audit, self.target, *self._all("references"), *students]
        return None

    def _noises(self) -> dict[str, dict[str, Any]]:
        import certify
        from certdef.config.noise_laws import noise_law

        levels = self.config.ducd.gaussians_255
        constant = {f"gaussian-{level:g}": certify.Gaussian(level / 255).describe() for level in levels}
        return constant | {law.label: noise_law(law).describe() for law in self.config.certify.laws}

    def _certify(self) -> dict[str, Any]:
        plain = _section(self.config, "certify")
        return {key: value for key, value in plain.items() if key not in CERTIFY_ELSEWHERE}

    def _weights(self, section: str) -> dict[str, Any]:
        plain = asdict(getattr(self.config, section))
        return {key: value for key, value in plain.items() if key not in USED_LATER[section]}

    def _before(self, purifier: str) -> list[str | None]:
        return self._all("surrogate", *self._networks(purifier), f"purifier-{purifier}")

    def _all(self, *names: str) -> list[str | None]:
        return [self.fingerprint(name) for name in names]


def _section(config: RunConfig, name: str) -> dict[str, Any]:
    """The options of a section, without those that came later and are unset."""
    section = getattr(config, name)
    default, plain = asdict(type(section)()), json.loads(json.dumps(asdict(section)))
    return {
        key: value
        for key, value in plain.items()
        if key not in NEWER[name] or asdict(section)[key] != default[key]
    }


def _form(config: RunConfig) -> dict[str, Any]:
    """In what form a user's own target was queried."""
    return {"quantise" if key == "quantize" else key: value for key, value in config.target.form.items()}
