"""Published recipes as defaults of `train distill`'s config: a literal dict each, which a config's own keys override.

None names the layers of exits; the config does (`exits.at`). Sources: METHODS in each comment.
"""

from collections.abc import Mapping
from typing import Any, Final

FROZEN: Final = {"backbone": False}

RECIPES: Final[Mapping[str, Mapping[str, Any]]] = {
    # LayerSkip (Elhoushi et al., 2024), continual pre-training of Llama2-7B: p_max .1, s .2, R 8, every layer an exit
    "layerskip": {
        "exits": {"adapter": "norm"},
        "layer_dropout": {"p_max": 0.1},
        "curriculum": {"kind": "rotational", "every": 8},
        "losses": {"task": 1.0, "exits": {"ce": 1.0, "kl": 0.0, "scale": "layerskip", "s": 0.2, "layers": "all"}},
    },
    # EE-LLM (Chen et al., 2024), 7B: weights .1 and .2, all weights trained, weight warm-up
    "ee-llm": {
        "exits": {"adapter": "norm", "placement": "pre"},
        "losses": {
            "exits": {"ce": 1.0, "kl": 0.0, "scale": "explicit", "weights": [0.1, 0.2], "warmup": 1000},
        },
    },
    # EE-Tuning (Pan et al., 2024): an exit is a copied MLP, norm and the head; the backbone is frozen, lr 1e-4
    "ee-tuning": {
        "exits": {"adapter": "mlp"},
        "tune": {**FROZEN, "embeddings": False},
        "optimizer": {"lr": 1e-4},
        "losses": {"task": 0.0, "exits": {"ce": 1.0, "kl": 0.0}},
    },
    # DSSD (self-supervised exits): heads imitate the final distribution, the language model is frozen
    "dssd": {
        "exits": {"adapter": "norm", "head": "low_rank", "rank": 256},
        "tune": {**FROZEN, "embeddings": False},
        "losses": {"task": 0.0, "exits": {"kl": 1.0}},
    },
    # Balcony (Jamialahmadi et al., 2025): a decoder layer and a norm per exit, KL to the final distribution, lr 5e-4
    "balcony": {
        "exits": {"adapter": "layer"},
        "tune": {**FROZEN, "embeddings": False},
        "optimizer": {"lr": 5e-4},
        "losses": {"task": 0.0, "exits": {"kl": 1.0}},
    },
    # CALM (Schuster et al., 2022): weights proportional to the layer; then the gates alone, target "agrees"
    "calm": {
        "exits": {"adapter": "norm", "gates": ["learned", "max_prob"]},
        "steps": 200,
        "losses": {"exits": {"ce": 1.0, "kl": 0.0, "scale": "index"}},
        "second": {
            "steps": 50,
            "tune": {**FROZEN, "embeddings": False},
            "losses": {"task": 0.0, "exits": None, "gates": 1.0},
        },
    },
    # FREE (Bae et al., 2023): (s CE_s + L CE_L) / (s + L) + .5 MSE to deeper layers by a monotone dynamic map, s = 6
    "free": {
        "exits": {"at": [6], "adapter": "norm"},
        "losses": {
            "exits": {"ce": 1.0, "kl": 0.0, "scale": "index"},
            "hidden": {"weight": 0.5, "kind": "mse", "of": "self", "map": {"kind": "dynamic"}},
        },
    },
    # SpecEE (Xu et al., 2025): predictors of 12 features of four candidates, 512 units, on a frozen model
    "specee": {
        "exits": {"adapter": "norm", "gates": ["predictor"], "predictor_units": 512},
        "tune": {**FROZEN, "embeddings": False},
        "losses": {"task": 0.0, "exits": None, "gates": 1.0},
    },
    # DeeBERT (Xin et al., 2020): the backbone, then the exits on it, sum of CE without the last; lr 2e-5
    "deebert": {
        "exits": {"adapter": "classifier"},
        "steps": 200,
        "optimizer": {"lr": 2e-5},
        "tune": {"exits": False},
        "losses": {"task": 1.0, "exits": None},
        "second": {
            "steps": 100,
            "tune": {**FROZEN, "embeddings": False},
            "losses": {"task": 0.0, "exits": {"ce": 1.0, "kl": 0.0}},
        },
    },
    # PABEE (Zhou et al., 2020): all together, sum_j j CE_j / sum_j j
    "pabee": {
        "exits": {"adapter": "classifier"},
        "optimizer": {"lr": 2e-5},
        "losses": {"exits": {"ce": 1.0, "kl": 0.0, "scale": "index"}},
    },
}
