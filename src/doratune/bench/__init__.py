"""Time and memory of LoRA and DoRA, ours and PEFT's, compared.

``op`` measures single layers, ``step`` whole optimizer steps, ``infer`` generation. ``figures`` turns rounds
into ratios and verdicts, and ``table`` shows the records.
"""
