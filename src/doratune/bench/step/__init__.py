"""What an optimizer step costs.

The cases of ``cases.yaml`` go through the training loops of ``loops``, in processes that take turns
(``turns``) and whose losses are compared.
"""
