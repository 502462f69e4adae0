"""Random networks in all the spellings that torch has, and what their maps must be.

* :mod:`~generators.program` - a program, step by step: its lines, and their meaning; the builder that writes it
* :mod:`~generators.layers`, :mod:`~generators.elementwise`, :mod:`~generators.sums`, :mod:`~generators.moves`,
  :mod:`~generators.gates`, :mod:`~generators.identities` - the steps that can be drawn, in their spellings
* :mod:`~generators.drawing` - which steps follow one another
* :mod:`~generators.readings` - what the meanings are for relevance: the oracles
* :mod:`~generators.checks` - a program explained and judged
* :mod:`~generators.hunt` - thousands of programs, and the smallest of each kind that fails
* :mod:`~generators.undo` - mistakes that are made on purpose, and how many programs show each of them

A new spelling is a line in a table of the steps; a new function a step, with a meaning that the readings know.
"""

# What the tests do not draw because it fails: patterns of steps and labels, kind by kind. To be emptied.
KNOWN_TO_FAIL: tuple[str, ...] = ()
