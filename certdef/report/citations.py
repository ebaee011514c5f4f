"""The papers behind the options of a run."""

from __future__ import annotations

from certdef.config.job import RunConfig
from certdef.config.own_target import NONE
from certdef.report.words import law_in_words

PAPERS = {
    "smoothing": "Cohen, Rosenfeld, Kolter. Certified Adversarial Robustness via Randomized Smoothing. ICML 2019. arXiv 1902.02918",
    "tss": "Li, Weber, Xu, Rimanic, Kailkhura, Xie, Zhang, Li. TSS: Transformation-Specific Smoothing for Robustness Certification. CCS 2021. arXiv 2002.12398",
    "patchcleanser": "Xiang, Mahloujifar, Mittal. PatchCleanser: Certifiably Robust Defense against Adversarial Patches for Any Image Classifier. USENIX Security 2022. arXiv 2108.09135",
    "bound": "Clopper, Pearson. The Use of Confidence or Fiducial Limits Illustrated in the Case of the Binomial. Biometrika 26, 1934",
    "pooled": "Hoeffding. On the Distribution of the Number of Successes in Independent Trials. Annals of Mathematical Statistics 27, 1956",
    "corruptions": "Hendrycks, Dietterich. Benchmarking Neural Network Robustness to Common Corruptions and Perturbations. ICLR 2019. arXiv 1903.12261",
    "denoised": "Salman, Sun, Yang, Kapoor, Kolter. Denoised Smoothing: A Provable Defense for Pretrained Classifiers. NeurIPS 2020. arXiv 2003.01908",
    "consistency": "Jeong, Shin. Consistency Regularization for Certified Robustness of Smoothed Classifiers. NeurIPS 2020. arXiv 2006.04062",
    "nim": "You, Liu, Han, Xu. Beyond Pretrained Features: Noisy Image Modeling Provides Adversarial Defense. NeurIPS 2023. arXiv 2302.01056",
    "dead-leaves": "Lee, Mumford, Huang. Occlusion Models for Natural Images: A Statistical Study of a Scale-Invariant Dead Leaves Model. IJCV 41, 2001",
    "synthetic-images": "Achddou, Gousseau, Ladjal. Synthetic Images as a Regularity Prior for Image Restoration Neural Networks. SSVM 2021",
    "early-convolutions": "Xiao, Singh, Mintun, Darrell, Dollar, Girshick. Early Convolutions Help Transformers See Better. NeurIPS 2021. arXiv 2106.14881",
    "mae": "He, Chen, Xie, Li, Dollar, Girshick. Masked Autoencoders Are Scalable Vision Learners. CVPR 2022. arXiv 2111.06377",
    "simmim": "Xie, Zhang, Cao et al. SimMIM: A Simple Framework for Masked Image Modeling. CVPR 2022. arXiv 2111.09886",
    "ncis": "Cha, Park, Moon et al. NCIS: Neural Contextual Iterative Smoothing for Purifying Adversarial Perturbations. WACV 2024. arXiv 2106.11644",
    "noise2self": "Batson, Royer. Noise2Self: Blind Denoising by Self-Supervision. ICML 2019. arXiv 1901.11365",
    "reversal": "Mao, Chiquier, Wang, Yang, Vondrick. Adversarial Attacks are Reversible with Natural Supervision. ICCV 2021. arXiv 2103.14222",
    "tasks": "Lawhon, Mao, Yang. Using Multiple Self-Supervised Tasks Improves Model Robustness. 2022. arXiv 2204.03714",
    "ddpm": "Ho, Jain, Abbeel. Denoising Diffusion Probabilistic Models. NeurIPS 2020. arXiv 2006.11239",
    "one-step": "Carlini, Tramer, Dvijotham et al. (Certified!!) Adversarial Robustness for Free! ICLR 2023. arXiv 2206.10550",
    "diffpure": "Nie, Guo, Huang, Xiao, Vahdat, Anandkumar. Diffusion Models for Adversarial Purification. ICML 2022. arXiv 2205.07460",
    "uad-rs": "Yu, Xu, Ghamisi. Universal Adversarial Defense in Remote Sensing Based on Pre-trained Denoising Diffusion Models. 2023. arXiv 2307.16865",
    "agdm": "Lin, Tao, Zhang et al. Robust Diffusion Models for Adversarial Purification. 2024. arXiv 2403.16067",
    "ducd": "Li, Wu, Chen et al. Privacy-preserving Universal Adversarial Defense for Black-box Models (DUCD). 2024. arXiv 2408.10647",
    "unicr": "Hong, Wang, Hong. UniCR: Universally Approximated Certified Robustness via Randomized Smoothing. ECCV 2022. arXiv 2207.02152",
    "rmia": "Zarifzadeh, Liu, Shokri. Low-Cost High-Power Membership Inference Attacks. ICML 2024. arXiv 2312.03262",
    "lira": "Carlini, Chien, Nasr, Song, Terzis, Tramer. Membership Inference Attacks From First Principles. IEEE S&P 2022. arXiv 2112.03570",
    "loss": "Yeom, Giacomelli, Fredrikson, Jha. Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting. CSF 2018. arXiv 1709.01604",
    "delong": "DeLong, DeLong, Clarke-Pearson. Comparing the Areas under Two or More Correlated Receiver Operating Characteristic Curves. Biometrics 44, 1988",
    "pgd": "Madry, Makelov, Schmidt, Tsipras, Vladu. Towards Deep Learning Models Resistant to Adversarial Attacks. ICLR 2018. arXiv 1706.06083",
    "cw": "Carlini, Wagner. Towards Evaluating the Robustness of Neural Networks. IEEE S&P 2017. arXiv 1608.04644",
    "simba": "Guo, Gardner, You, Wilson, Weinberger. Simple Black-box Adversarial Attacks. ICML 2019. arXiv 1905.07121",
    "udc": "Song, Zhang, Zhang et al. Adversarial Purification and Fine-tuning for Robust UDC Image Restoration. 2024. arXiv 2402.13629",
    "display": "Zhou, Ren, Emerton, Lim, Large. Image Restoration for Under-Display Camera. CVPR 2021. arXiv 2003.04857",
    "torchattacks": "Kim. Torchattacks: A PyTorch Repository for Adversarial Attacks. arXiv 2010.01950",
    "timm": "Wightman. PyTorch Image Models. 2019",
    "digits": "Alpaydin, Kaynak. Optical Recognition of Handwritten Digits. UCI Machine Learning Repository, 1998",
    "fashion-mnist": "Xiao, Rasul, Vollgraf. Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms. arXiv 1708.07747",
}


def reference(paper: str) -> str:
    """A paper's reference by its key in PAPERS; a whole reference stays as it is, and a lone word has none."""
    return PAPERS.get(paper, paper if " " in paper else "")


def cite(config: RunConfig) -> str:
    """One line a paper: what it is used for, then the reference."""
    used = _ducd(config) if config.ducd.enabled else UDC if config.udc.enabled else _main(config)
    # images of the user's own have no paper
    return "\n".join(f"{use}\n    {reference(paper)}" for paper, use in used.items() if reference(paper))


SMOOTHING = {
    "smoothing": "certificates: majority vote under noise",
    "bound": "certificates: the bound on the top class; every interval",
}
UDC = {
    "udc": "the job",
    "display": "the simulated camera",
    "diffpure": "the purifier",
    "ddpm": "its network",
    "pgd": "attack",
    "cw": "attack",
    "simba": "attack",
}


def _main(config: RunConfig) -> dict[str, str]:
    from certdef.purifiers.registry import find_purifier  # which loads torch

    law, papers = config.certify.laws[0], find_purifier(config.purifier).about.papers
    # a chosen noise is another one: its candidates are in no paper
    noise = "the noise" if not config.certify.candidates else "the noise that networks are trained under"
    return SMOOTHING | {
        "denoised": "certificates: a denoiser before the classifier",
        "nim": f"{noise}, sigma ~ {law_in_words(law)}" + (", and De^3" if "nim" in papers else ""),
        **{paper: f"the purifier {config.purifier}" for paper in papers if paper != "nim"},
        "ducd": f"the surrogate ({config.surrogate.model}), distilled from {config.ledger.training} answers",
        **_consistency(config),
        "pgd": f"the attack, {config.attack.steps} steps",
        "torchattacks": "the attack's implementation",
        "timm": "transformer blocks, and every model by name",
        _images(config): "the images",
    }


def _ducd(config: RunConfig) -> dict[str, str]:
    surrogates = f"{len(config.ducd.overlaps)} surrogates ({config.surrogate.model})"
    return SMOOTHING | {
        "ducd": f"the job; {surrogates}",
        **_consistency(config),
        "unicr": "the noise, chosen among several on held-out images",
        "rmia": "membership inference by likelihood ratios, offline",
        "lira": "membership inference by a normal law of reference models, offline",
        "loss": "membership inference by a threshold on the loss",
        "delong": "the intervals of its AUC",
        _images(config): "the images",
    }


def _consistency(config: RunConfig) -> dict[str, str]:
    surrogate = config.surrogate
    used = surrogate.noise == "certified" and surrogate.consistency > 0 and surrogate.model != NONE
    return {"consistency": "the training of the certified surrogate"} if used else {}


def _images(config: RunConfig) -> str:
    """The data set's key; images of the user's own have none."""
    return config.data.name if config.data.path is None else ""
