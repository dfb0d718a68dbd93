"""`verify`: judges a server of the protocol from outside, rule by rule, in any language.

`rules` is the one list of rules. The command, docs/verify.md and the tests of the protocol read it.
"""
