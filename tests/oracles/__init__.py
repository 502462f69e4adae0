"""What maps are compared with: slower, less complicated, and written without the library.

* :mod:`oracles.reference` - each rule as a few lines of dense matrices in float64
* :mod:`oracles.detached` - networks whose gradient * input is the relevance
* :mod:`oracles.patterns_reference` - patterns and their quality from explicit matrices
"""
