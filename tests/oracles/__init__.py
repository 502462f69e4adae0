"""What maps are compared with: slower, less complicated, and written without the library.

* :mod:`oracles.reference` - each rule as a few lines of dense matrices in float64
* :mod:`oracles.cases` - rules of the library and the formulas that they stand for
* :mod:`oracles.norms` - norms as linear maps
* :mod:`oracles.detached` - networks whose gradient * input is the relevance
* :mod:`oracles.patterns_reference` - patterns and their quality from explicit matrices
"""
