"""An external replacement of the compiled tier (NATTEN_MLX_NANOBIND_MODULE=external_module): plain MLX operations on
a dense mask, with gradients by MLX's own vjp. An example of the contract, which is checked when the library loads it:

    supports(problem) -> None | str        a reason to decline
    forward(problem, query, key, value, rpb, lengths) -> (out, lse)
    backward_query(problem, query, key, value, rpb, lengths, out, lse, dout, dlse) -> [dq] or [dq, drpb]
    backward_key_value(problem, query, key, value, rpb, lengths, out, lse, dout, dlse) -> [dk, dv]
    qk(problem, query, key, rpb, lengths) -> logits
    qk_backward_query(problem, query, key, rpb, lengths, dlogits) -> [dq] or [dq, drpb]
    qk_backward_key(problem, query, key, lengths, dlogits) -> dk
    av(problem, attn, value, lengths) -> out
    av_backward_attn(problem, attn, value, lengths, dout) -> dattn
    av_backward_value(problem, attn, value, lengths, dout) -> dv

`problem` is a dict; arrays are canonical (three spatial axes); rpb and lengths may be None.
"""
