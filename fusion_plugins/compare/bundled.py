"""What a comparison knows of FusionBench 0.2.33's own methods.

Which do not run is found by ``benchmarks/bundled_methods.py``, which also writes the table
in docs/compare.md.
"""

_PARAMETERS = "its sums mix parameters with plain tensors, which are refused"
_UNKNOWN = "no class is registered under the config's name"

#: Configs that no CLIP pool gets a result from, with the reason.
NOT_RUNNING = {
    "concrete_subspace/clip_safe_concrete_layer_wise_adamerging": (
        "uses a variable that is not defined"
    ),
    "concrete_subspace/clip_safe_concrete_task_arithmetic": _UNKNOWN,
    "ensemble/weighted_ensemble": "mixes float64 and float32",
    "fisher_merging/fisher_merging": _UNKNOWN,
    "fw_merging/fw_hard": _PARAMETERS,
    "linear/linear_interpolation": "compares a list of names with the number 2",
    "model_recombination": "returns a pool, not a model",
    "pwe_moe/pwe_moe_ls_for_clip": _PARAMETERS,
    "randes/superposed_task_arithmetic": _UNKNOWN,
    "randes/superposed_task_arithmetic_lora": "its config lacks two of its arguments",
    "rankone_moe/rankone_moe": _PARAMETERS,
    "regmean_plusplus/clip_regmean_plusplus": "a dict stands where a bidict is wanted",
    "tall_mask/task_arithmetic": _PARAMETERS,
    "wemoe/sparse_weight_ensembling_moe": _PARAMETERS,
    "wemoe/weight_ensembling_moe": _PARAMETERS,
}

#: Classes that read no data and draw nothing: every seed gives the same model.
DETERMINISTIC = frozenset(
    f"fusion_bench.method.{name}"
    for name in (
        "DOGE_TA_Algorithm",
        "ExPOAlgorithm",
        "ISO_CTS_Merge",
        "ISO_C_Merge",
        "MagMaxAlgorithm",
        "MaxModelPredictorAlgorithm",
        "SimpleAverageAlgorithm",
        "SimpleEnsembleAlgorithm",
        "TaskArithmeticAlgorithm",
        "TaskSingularVectorMerging",
        "TiesMergingAlgorithm",
        "WUDIMerging",
        "WeightedAverageAlgorithm",
        "emr_merging.EMRMerging",
    )
)
