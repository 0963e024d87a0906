"""Chat templates of the shapes that models come with, made for tests: those that are tables, and those that are not."""

_TURN = "{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}"
_ASSISTANT = "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"

TABLES = {
    # a turn for everybody, and a system's message by default
    "turns": "{% if messages[0]['role'] != 'system' %}{{ '<|system|>\nBe <b>good</b>.<|end|>\n' }}{% endif %}"
    "{% for m in messages %}" + _TURN + "{% endfor %}" + _ASSISTANT,
    # everything stripped, after a token that begins the text
    "stripped": "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]\n\n{{ m['content'] | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n\n{% endif %}",
    # user and assistant take turns; the system's message is part of the user's first
    "merged": "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}{{ bos_token }}"
    "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant take turns') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ (system if loop.first else '') + m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}</s>{% else %}{{ raise_exception('who is it') }}{% endif %}"
    "{% endfor %}",
    # no system; the assistant is called otherwise; both are stripped
    "two": "{{ bos_token }}{% for m in messages %}{% if m.role not in ('user', 'assistant') %}"
    "{{ raise_exception('there is no such role') }}{% endif %}"
    "<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<over>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% endif %}",
    # what an assistant thought is left out, and it looks for other things in messages
    "thinking": "{% for m in messages %}{% set said = m.content %}"
    "{% if m.role == 'assistant' and '</think>' in said %}{% set said = said.split('</think>')[-1] %}{% endif %}"
    "{% if m.role == 'user' and said.startswith('<tool>') and said.endswith('</tool>') %}"
    "{% set said = 'T' %}{% endif %}"
    "<{{ m.role }}>{{ said }}</{{ m.role }}>{% endfor %}<assistant>",
}
SPECIAL = {"thinking": ["</think>", "</tool>"]}  # what a template looks for

NO_TABLES = {  # and why
    "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}": "what day it is",
    "{% for m in messages %}{{ loop.index }}{{ m.role }}{{ m.content }}{% endfor %}": "goes by more than these two",
    "{% for m in messages %}{{ m.role }}{% endfor %}": "leaves out, repeats, moves or changes",
    "{% for m in messages %}{{ m.role }}{{ m.content }}{{ m.content }}{% endfor %}": "leaves out, repeats",
    "{% for m in messages | reverse %}{{ m.role }}{{ m.content }}{% endfor %}": "leaves out, repeats, moves",
    "{% for m in messages %}{{ m.role }}{{ m.content | upper }}{% endfor %}": "leaves out, repeats, moves or changes",
    "{% for m in messages %}{{ m.role }}{{ m.content | e }}{% endfor %}": "something of its own with",
    "{% for m in messages %}{{ m.role }}{{ m.content.lstrip() }}{% endfor %}": "something of its own with",
    "{% for m in messages %}{{ m.role }}{{ m.content[:200] }}{% endfor %}": "something of its own with '1111",
    "{% for m in messages %}{{ m.role }}{% if m.content %}:{{ m.content }}{% endif %}{% endfor %}": "with ''",
    "{% for m in messages %}{{ m.role }}{{ m.content | trim if loop.first else m.content }}{% endfor %}": "of its own",
    "{% if messages | length > 2 %}{{ raise_exception('no') }}{% endif %}"
    "{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}": "in this order, though any two",
    "{{ raise_exception('never') }}": "no conversation of a system, a user and an assistant",
    "{% for %}": "the chat template fails",
}
