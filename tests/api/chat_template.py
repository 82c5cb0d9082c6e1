"""A chat template over the tokens of the tiny models."""

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{{ prefix | default('') }}{% endif %}"
)
