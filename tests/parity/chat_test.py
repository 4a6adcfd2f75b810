"""Chat templates render as transformers renders them."""

import importlib.util

import pytest

from mmjax.data import chat

LLAMA2 = ("{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
          "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
          "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
          "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
          "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
          "{% if loop.index0 == 0 and system_message != false %}"
          "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}"
          "{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
          "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
          "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}")
SPACED = """
{%- for message in messages %}
    {%- if message.role == "tool" %}
        {%- continue %}
    {%- endif %}
    <|{{ message.role }}|>
    {{ message | tojson }} {{ loop.index }}
{% endfor %}
{% if add_generation_prompt %}
<|assistant|>
{% endif %}"""


@pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="transformers is not installed")
@pytest.mark.parametrize("source", [LLAMA2, SPACED, chat.CHATML])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_templates_render_as_in_transformers(source, count):
    from transformers.utils.chat_template_utils import render_jinja_template
    roles = ["system", "user", "assistant", "user", "assistant"][:count] if count > 1 else ["user"]
    messages = [dict(role=role, content=f" wörds <{k}> ") for k, role in enumerate(roles)]
    tokens = dict(bos_token="<s>", eos_token="</s>")
    (want,), _ = render_jinja_template([messages], chat_template=source, add_generation_prompt=True, **tokens)
    assert chat.render(source, messages, True, **tokens) == want
