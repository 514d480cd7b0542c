"""Names that layers with a model's output have."""

import re

# Wherever it stands.
HEAD = re.compile(
    r"lm_head|embed_out|unembed|(\w*_)?classifier|(class|bbox|box|span)_embed|qa_outputs|to_logits",
    re.IGNORECASE,
)
# Outside of a model's blocks.
OUTER_HEAD = re.compile(
    r"(?!conv_head|pre_logits)"  # of nets for pictures: layers before the pooling and the head
    r"((\w+_)?heads?(_linear|_proj)?|\w*classifiers?|logits?|score|\w+_logits|output_projection"
    r"|fc_out|(class|bbox|box|mask|score)_predictor|seq_relationship|(\w+_)?pred(iction)?s?"
    r"|predict_\w+|prototypes?)",
    re.IGNORECASE,
)
