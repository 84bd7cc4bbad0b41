"""Pure functions of tensors that compute distillation losses, one family a file."""

# Aliased imports (``x as x``) mark a name as re-exported for type checkers and ruff alike;
# the alternative, ``__all__``, would list every name a second time.
from kd_lightning.losses.contrastive import contrastive as contrastive
from kd_lightning.losses.contrastive import partition_estimate as partition_estimate
from kd_lightning.losses.controls import permuted_soft_targets as permuted_soft_targets
from kd_lightning.losses.feature import attention as attention
from kd_lightning.losses.feature import embedding_match as embedding_match
from kd_lightning.losses.feature import flow as flow
from kd_lightning.losses.feature import hierarchical_context as hierarchical_context
from kd_lightning.losses.feature import hint as hint
from kd_lightning.losses.feature import initial_log_scale as initial_log_scale
from kd_lightning.losses.feature import neuron_selectivity as neuron_selectivity
from kd_lightning.losses.feature import variational_information as variational_information
from kd_lightning.losses.relation import angle_relation as angle_relation
from kd_lightning.losses.relation import correlation_congruence as correlation_congruence
from kd_lightning.losses.relation import distance_relation as distance_relation
from kd_lightning.losses.relation import probabilistic_transfer as probabilistic_transfer
from kd_lightning.losses.relation import similarity as similarity
from kd_lightning.losses.response import correlation as correlation
from kd_lightning.losses.response import decoupled as decoupled
from kd_lightning.losses.response import logit_mse as logit_mse
from kd_lightning.losses.response import soft_targets as soft_targets
from kd_lightning.losses.response import standardized_soft_targets as standardized_soft_targets
