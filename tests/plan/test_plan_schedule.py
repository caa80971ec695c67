"""What runs beside what, read from small scheduled programs in each of the forms that XLA has for it."""

from hlo_texts import entry, fake_mesh

from ellama_jax.plan.hlo_costs import Operation
from ellama_jax.plan.hlo_module import read_module
from ellama_jax.plan.schedule import Loop, Start, read_timeline


def events(serialized, **mesh):
    """The timeline as short words: a product is `dot`, other operations are left out."""
    timeline, found = read_timeline(read_module(serialized), fake_mesh(**(mesh or {"fsdp": 2})))
    return _words(timeline), [(c.kind, c.payload_bytes, c.count) for c in found]


def _words(timeline):
    words = []
    for event in timeline:
        if isinstance(event, Loop):
            words.append((event.trips, _words(event.events)))
        elif isinstance(event, Operation):
            words += ["dot"] if event.flops else []
        else:
            words.append(f"{'start' if isinstance(event, Start) else 'wait'} {event.place}")
    return words


DOT = "%d = f32[4,512] dot(%p, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
ARGUMENTS = "%p = f32[4,512] parameter(0)\n%w = f32[512,512] parameter(1)\n"
GATHERED = ("all-gather", 8 * 512 * 4, 1)


def test_a_collective_by_itself_is_waited_for_at_once():
    words, found = events(
        entry(f"""{ARGUMENTS}%g = f32[8,512] all-gather(%p), channel_id=1, replica_groups={{{{0,1}}}}, dimensions={{0}}
{DOT}
ROOT %r = f32[8,512] negate(%g)""")
    )
    assert (words, found) == (["start 0", "wait 0", "dot"], [GATHERED])


def test_between_a_start_and_its_done_things_run_beside():
    words, found = events(
        entry(f"""{ARGUMENTS}%g = (f32[4,512], f32[8,512]) all-gather-start(%p), channel_id=1, replica_groups={{{{0,1}}}}, dimensions={{0}}
{DOT}
%done = f32[8,512] all-gather-done(%g)
ROOT %r = f32[8,512] negate(%done)""")
    )
    # The gathered array is what counts, not the operand in the tuple.
    assert (words, found) == (["start 0", "dot", "wait 0"], [GATHERED])


OFFLOADED = """%offloaded (a: f32[4,512]) -> f32[4,512] {
  %a = f32[4,512] parameter(0)
  ROOT %sum = f32[4,512] all-reduce(%a), channel_id=1, replica_groups={{0,1}}, to_apply=%add
}, execution_thread="sparsecore"
"""


def test_a_collective_on_a_sparse_core_runs_beside_until_its_call_is_done():
    words, found = events(
        entry(
            f"""{ARGUMENTS}%s = ((f32[4,512]), f32[4,512], u32[]) async-start(%p), async_execution_thread="sparsecore", calls=%offloaded
{DOT}
%over = f32[4,512] async-done(%s)
ROOT %r = f32[4,512] negate(%over)""",
            OFFLOADED,
        )
    )
    assert (words, found) == (["start 0", "dot", "wait 0"], [("all-reduce", 4 * 512 * 4, 1)])


def _gather(name, operand):
    return (
        f"%{name} = f32[8,512] all-gather(%{operand}), channel_id=7, replica_groups={{{{0,1}}}}, "
        'dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_start":"2"}}'
    )


CHAIN = f"""%begin (a: f32[4,512]) -> (f32[4,512], f32[8,512]) {{
  %a = f32[4,512] parameter(0)
  {_gather("g1", "a")}
  ROOT %c1 = (f32[4,512], f32[8,512]) custom-call(%g1), custom_call_target="AsyncCollectiveStart"
}}
%step (b: f32[4,512], x: f32[4,512], y: f32[512,512]) -> (f32[4,512], f32[8,512]) {{
  %b = f32[4,512] parameter(0)
  %x = f32[4,512] parameter(1)
  %y = f32[512,512] parameter(2)
  {_gather("g2", "b")}
  %c2 = f32[4,512] dot(%x, %y), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  ROOT %t2 = (f32[4,512], f32[8,512]) tuple(%c2, %g2)
}}
%end (e: f32[4,512], h: f32[8,512]) -> f32[8,512] {{
  %e = f32[4,512] parameter(0)
  %h = f32[8,512] parameter(1)
  {_gather("g3", "e")}
  ROOT %c3 = f32[8,512] custom-call(%h, %g3), custom_call_target="AsyncCollectiveDone"
}}
"""
CHAINED = """%begun = (f32[4,512], f32[8,512]) fusion(%p), kind=kCustom, calls=%begin
%part = f32[4,512] get-tuple-element(%begun), index=0
%buffer = f32[8,512] get-tuple-element(%begun), index=1
%stepped = (f32[4,512], f32[8,512]) fusion(%part, %p, %w), kind=kOutput, calls=%step
ROOT %whole = f32[8,512] fusion(%part, %buffer), kind=kCustom, calls=%end"""


def test_a_chain_of_fusions_around_one_collective_is_one_that_runs_beside_its_products():
    words, found = events(entry(ARGUMENTS + CHAINED, CHAIN))
    assert (words, found) == (["start 0", "dot", "wait 0"], [GATHERED])


def test_a_chain_of_fusions_writes_what_it_gathers_once():
    timeline, _ = read_timeline(read_module(entry(ARGUMENTS + CHAINED, CHAIN)), fake_mesh(fsdp=2))
    moved = [event.hbm_bytes for event in timeline if isinstance(event, Operation)]
    product = 2 * 4 * 512 * 4 + 512 * 512 * 4
    assert moved[1:] == [product, 8 * 512 * 4 * 2]  # reads the buffer, hands on the gathered array


LOOP = f"""%body (b: (s32[], f32[4,512], f32[512,512])) -> (s32[], f32[4,512], f32[512,512]) {{
  %b = (s32[], f32[4,512], f32[512,512]) parameter(0)
  %i = s32[] get-tuple-element(%b), index=0
  %p = f32[4,512] get-tuple-element(%b), index=1
  %w = f32[512,512] get-tuple-element(%b), index=2
  %s = f32[4,512] collective-permute-start(%p), channel_id=2, source_target_pairs={{{{0,1}},{{1,0}}}}
  {DOT}
  %done = f32[4,512] collective-permute-done(%s)
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %out = (s32[], f32[4,512], f32[512,512]) tuple(%next, %done, %w)
}}
%cond (c: (s32[], f32[4,512], f32[512,512])) -> pred[] {{
  %c = (s32[], f32[4,512], f32[512,512]) parameter(0)
  %j = s32[] get-tuple-element(%c), index=0
  %limit = s32[] constant(6)
  ROOT %more = pred[] compare(%j, %limit), direction=LT
}}
"""


def test_the_permutations_of_a_collective_product_run_beside_its_parts():
    text = LOOP.replace(
        "%s = f32[4,512] collective", "%s = (f32[4,512], f32[4,512], u32[], u32[]) collective"
    )
    words, found = events(
        entry(
            """%q = f32[4,512] parameter(0)
%v = f32[512,512] parameter(1)
%zero = s32[] constant(0)
%init = (s32[], f32[4,512], f32[512,512]) tuple(%zero, %q, %v)
%loop = (s32[], f32[4,512], f32[512,512]) while(%init), condition=%cond, body=%body
ROOT %r = f32[4,512] get-tuple-element(%loop), index=1""",
            text,
        )
    )
    assert words == [(6, ["start 0", "dot", "wait 0"])]
    assert found == [("collective-permute", 4 * 512 * 4, 6)]


def test_what_is_sent_between_slices_runs_beside_until_the_answer_is_received():
    attributes = (
        'channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="r0"'
        ',_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}'
    )
    text = entry(f"""{ARGUMENTS}%t = token[] after-all()
%send.1 = (f32[4,512], u32[], token[]) send(%p, %t), {attributes}
%recv.1 = (f32[4,512], u32[], token[]) recv(%t), {attributes}
%sent = token[] send-done(%send.1), channel_id=2
{DOT}
ROOT %got = (f32[4,512], token[]) recv-done(%recv.1), channel_id=2""")
    timeline, found = read_timeline(read_module(text), fake_mesh(slices=2, data=2, fsdp=4))
    assert _words(timeline) == ["start 0", "dot", "wait 0"]
    assert (found[0].kind, found[0].network) == ("all-reduce", "dcn")
