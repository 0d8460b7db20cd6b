"""What DoRA and LoRA cost compared with each other and with PEFT's: time and memory.

``op`` measures single layers, ``step`` whole optimizer steps. ``figures`` turns rounds into ratios and
verdicts, ``table`` shows the records.
"""
