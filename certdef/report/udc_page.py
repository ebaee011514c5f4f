"""The page of the UDC job: how well each system restores, clean and under every attack; the defense beside its controls.

Every figure is taken from a stage's result; none is measured here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from certdef.config.job import RunConfig
from certdef.data.sets import Splits
from certdef.report import images
from certdef.report.template import papers, template
from certdef.stages.job import versions
from certdef.stages.networks import NetworkResult
from certdef.stages.udc.bench import SYSTEMS
from certdef.stages.udc.evaluation import Evaluation, UDCResult
from certdef.tracking.workspace import Stage
from surrogates import Bill

ATTACK_TITLES = {
    "clean": "no attack",
    "pgd": "PGD",
    "carlini_wagner": "C&W-like",
    "simba": "SimBA-like",
    "pgd_bpda_eot": "PGD, BPDA + EOT",
    "pgd_full_eot": "PGD, full gradient + EOT",
}
THREAT_MODELS = {
    "clean": "the images as the camera sees them",
    "pgd": "the restoration's weights, nothing of the purifier",
    "carlini_wagner": "the restoration's weights, nothing of the purifier",
    "simba": "outputs of the restoration, nothing of the purifier",
    "pgd_bpda_eot": "every weight; the purifier's gradient is replaced by the identity's",
    "pgd_full_eot": "every weight and every gradient, averaged over the noise",
}
SYSTEM_TITLES = {
    "none": "Restoration alone",
    "purified": "Purified",
    "fine_tuned": "Purified, fine-tuned",
    "fine_tuned_transfer": "Purified, fine-tuned, transfer",
    "fine_tuned_unpurified": "Fine-tuned alone",
    "clean_tuned": "Purified, tuned without attacks",
    "clean_tuned_unpurified": "Tuned without attacks, alone",
    "adversarial": "Purified, adversarially trained",
    "adversarial_unpurified": "Adversarially trained alone",
}
DEFENSE = tuple(SYSTEM_TITLES)[:5]  # the published stages; the others are controls
CONTROLS = ("fine_tuned", "fine_tuned_unpurified", *tuple(SYSTEM_TITLES)[5:])
NETWORK_TITLES = {
    "restoration": "not fine-tuned",
    "clean_tuned": "purified inputs, none attacked",
    "adversarial": "half attacked, not purified: plain adversarial training",
    "fine_tuned": "purified inputs, half attacked: the defense",
}
GAIN_TITLES = {
    "attack_costs": "Attack costs",
    "purification_gains": "Purification gains",
    "fine_tuning_adds": "Fine-tuning adds",
    "below_clean": "Below clean, at the end",
    "attacked_inputs_add": "Attacked inputs add",
    "purifier_adds": "Over adversarial training alone",
}
EXAMPLE_TITLES = {
    "truth": "truth",
    "degraded": "degraded",
    "restored": "restored",
    "attacked": "attacked",
    "attacked_restored": "its restoration",
    "purified": "purified",
    "purified_restored": "then restored",
    "fine_tuned": "fine-tuned",
}


def render(
    config: RunConfig, data: Splits, done: Sequence[Stage], bill: Bill, *, run_id: str = "", device: str = ""
) -> str:
    """The whole page as HTML that loads nothing: styles and pictures are inside.

    Args:
        config: The job.
        data: Its photographs.
        done: The finished stages of the job.
        bill: Not used: the job has no target.
        run_id: MLflow run of the job, if it is to be named.
        device: Device the job ran on, if it is to be named.
    """
    folder = {each.name: each.path for each in done}
    results = {each.name: each.result for each in done}
    result: UDCResult = results["udc"]
    return template("udc.html").render(
        data=data,
        config=config,
        result=result,
        headline=result.headline,
        named=result.named,
        attack_title=attack_title,
        threat_models=THREAT_MODELS,
        defense=titles(DEFENSE),
        controls=titles(CONTROLS),
        network_titles=NETWORK_TITLES,
        with_and_without=with_and_without(),
        gain_titles=GAIN_TITLES,
        level=results["udc-level"],
        networks={name: each.parameters for name, each in results.items() if isinstance(each, NetworkResult)},
        strip=images.data_uri((folder["udc"] / "strip.png").read_bytes()),
        versions=versions(),
        config_json=json.dumps(config.public_dict(), indent=2),
        papers=papers("udc", "diffpure", "ddpm", "pgd", "cw", "simba", "display"),
        run_id=run_id,
        device=device,
    )


def titles(systems: Sequence[str]) -> dict[str, str]:
    """Systems and their titles."""
    return {name: SYSTEM_TITLES[name] for name in systems}


def with_and_without() -> dict[str, tuple[str, str]]:
    """By network, its system with the purifier in front, and the one without."""
    own = {name: system for name, system in SYSTEMS.items() if system.network == system.attacked}
    by_purifier = [
        {system.network: name for name, system in own.items() if system.purified is purified}
        for purified in (True, False)
    ]
    return {network: (by_purifier[0][network], by_purifier[1][network]) for network in NETWORK_TITLES}


def attack_title(evaluation: Evaluation) -> str:
    """An attack and its budget, as tables print them."""
    title = ATTACK_TITLES[evaluation.attack]
    return f"{title}, {evaluation.eps_255:g}/255" if evaluation.eps_255 else title


def strip(examples: Mapping[str, Any]) -> bytes:
    """What becomes of a few test crops, a row each, as PNG bytes."""
    return images.image_strip({title: examples[name] for name, title in EXAMPLE_TITLES.items()})
