"""What certdef proves, what it does not, and the ten sharp edges: as docs/sharp-edges.md says it, word for word (a test compares them)."""

from __future__ import annotations

PROVES = (
    "The *smoothed* classifier (noise, then the purifier, then the classifier, then a majority vote) keeps its answer for every change of that image with an L2 norm below the radius, in [0, 1] pixel units, by whatever attack.",
    "The radius for NIM noise, whose sigma is itself random, is proven for the mixture. The usual formula with the mean sigma is unsound for it.",
    "Every certificate names its subject (target or surrogate), norm, alpha, noise law, and whether it is sound or approximate.",
)
DOES_NOT_PROVE = (
    "about the bare target: without the noise and the vote there is no guarantee;",
    "about the target, from a certificate of the surrogate;",
    "in other norms (an L2 radius r covers only r / sqrt(pixels) in L-infinity), nor for rotations, shifts or new colors;",
    "beyond the radius, or where the classifier abstains (abstention counts as wrong);",
    "for all images at once: alpha holds for each image and each table row by itself;",
    "about a target that was replaced after it was queried;",
    "through attacks: the attack tables are measurements. They can only show a weakness.",
)
LIMITS = (
    "**A surrogate's certificate says nothing about the target.** The two models differ, and most of all under noise. Read the subject before you read the radius.",
    "**alpha is per image, for noise drawn after the image was chosen.** Of 1,000 certificates at alpha 0.001, one may well be wrong. The best of several laws, seeds or repetitions is no certificate at that alpha. Who knows the seed beforehand can search for an image whose votes mislead: a served model draws a fresh seed for each request.",
    "**The noise must come before everything else.** It is added in [0, 1] pixel space, to the full image, before denoising, normalization or resizing. If you resize or clip an image before the noise, the certificate is about the resized or clipped image. Nothing computed from the un-noised image may reach the classifier by another way.",
    "**A target that answers differently each time.** A proof needs independent votes from one model. A fresh random choice for each query does no harm: it is part of the vote. But if the answer follows the hour, the caller or earlier queries, or the model is replaced, the certificate is void. A job queries a few canary images again every 2,000 paid queries, stops if the answers have changed, and never uses what was answered since the last good check. A change that is undone between two checks is not noticed.",
    "**Noisy pixels leave [0, 1].** Without De^3 they reach the target as they are. For a service that takes 8-bit images give `--target.quantize 8` (or `images: png` in a mapping): clipping and rounding are then part of the target, and the certificate still holds.",
    "**An MLflow URI runs code.** Loading a model executes what its author put into it, with your rights. Open only models you trust. certdef's own weights are safetensors, and nothing of its own is unpickled.",
    "**Every vote is a query.** The target is charged n0 + n queries for each image, once for each row of its table. Certificates use labels alone, so a target that gives only hard labels is charged the same; but the surrogate gains less from each training query.",
    "**The ledger can be uncertain.** A query that was sent and never answered is `unknown`: it counts against the budget, and the bill gives the smallest and the largest possible charge. A refused attempt (no connection, a 4xx status, 503) costs nothing. An attempt that was lost is `unknown` too, and is repeated only where the budget allows one more. The budget holds for one ledger file. A copy of it is a second budget; shards divide one.",
    "**The ledger lives in `runs/`.** Who deletes that folder deletes paid answers. `--fresh` keeps them.",
    "**CPU and GPU draw different noise from the same seed.** Both give valid certificates with different counts. On one kind of device the same seed gives the same counts, whatever the batch size or the point of interruption.",
)
