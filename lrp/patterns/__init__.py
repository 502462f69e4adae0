"""Patterns for PatternNet and PatternAttribution: fitted in one pass over the data, saved and loaded.

>>> import torch, lrp
>>> model = lrp.Sequential(lrp.Linear(4, 3), torch.nn.ReLU(), lrp.Linear(3, 2)).eval()
>>> patterns = fit_patternnet_positive(model, [torch.randn(8, 4) for _ in range(3)])
>>> [tuple(pattern.shape) for pattern in patterns]
[(3, 4), (2, 3)]
>>> x = torch.rand(5, 4, requires_grad=True)
>>> model(x, explain=True, rule="patternattribution", pattern=patterns).sum().backward()

* :mod:`~lrp.patterns.fitting` - one call from model and data to patterns
* :mod:`~lrp.patterns.statistics` - what is underneath: sums over samples that can be updated, merged and saved
* :mod:`~lrp.patterns.moments` - the sums of one layer, and the estimates made of them
* :mod:`~lrp.patterns.observation` - what goes through the linear layers in a model's own forward
* :mod:`~lrp.patterns.batches` - what of a batch of data a model takes
* :mod:`~lrp.patterns.collectives` - sums over the processes of ``torch.distributed``
* :mod:`~lrp.patterns.files` - patterns and statistics as files
* :mod:`~lrp.patterns.quality` - how much of a neuron's signal a pattern finds

The rules that use patterns are in :mod:`lrp.rules`. A new estimator is a kind in ``moments``.
"""

from .files import load, save
from .fitting import fit_patternnet, fit_patternnet_positive
from .moments import Kind
from .quality import quality
from .statistics import PatternStatistics

__all__ = ["Kind", "PatternStatistics", "fit_patternnet", "fit_patternnet_positive", "load", "quality", "save"]
