"""Small, named faults in the functions of the ledger, each with the rules that are there to find it.

A piece of a function's text is replaced, which must be there: whoever changes the function mends the mutation.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.databases import Database

FAULT = "no error but refusals"
REPEATED = "a repeat is answered as the first was"
OTHERWISE = "a name is not used for other content"


@dataclass(frozen=True)
class Piece:
    """A function's name, and what becomes of a piece of its text."""

    function: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutation:
    """One fault.

    Attributes:
        name: what is wrong.
        caught_by: rules of which one at least must not hold.
        pieces: what is replaced.
        besides: what else is done to the database.
    """

    name: str
    caught_by: tuple[str, ...]
    pieces: tuple[Piece, ...]
    besides: str = ""

    async def apply(self, database: Database) -> None:
        """Makes the database wrong."""
        for piece in self.pieces:
            text = await database.value(
                "select pg_get_functiondef(p.oid) from pg_proc as p"
                " where p.pronamespace = 'doorkey'::regnamespace and p.proname = %s",
                (piece.function,),
            )
            assert piece.old in text, f"{piece.function} has changed: mend the mutation"
            await database.run(text.replace(piece.old, piece.new))
        if self.besides:
            await database.run(self.besides)


MUTATIONS = (
    Mutation(
        "an entry is missing",
        ("entries sum to zero",),
        (Piece("take_credits", "p_type, -owed_micros, -taken_micros,", "p_type, 0, -taken_micros,"),),
        "alter table public.credit_transactions drop constraint entries_sum_to_zero",
    ),
    Mutation(
        "a balance is not moved",
        ("balances are the sums of their entries",),
        (Piece("apply_transaction", "c.leaving_micros + new.leaving_micros", "c.leaving_micros"),),
        # Or it would stop itself.
        "alter table public.credit_accounts drop constraint credit_accounts_leaving_micros_check",
    ),
    Mutation(
        "a hold is closed and its credits stay held",
        ("held is what open holds keep",),
        (Piece("close_hold", "if p_hold.held_micros > 0 then", "if false then"),),
    ),
    Mutation(
        "what is taken stays in the lots",
        ("lots are what is available or held",),
        (Piece("take_credits", "perform doorkey.spend_lots(p_user_id, taken_micros - v_from_lot);", ""),),
    ),
    Mutation(
        "a debt is not paid by the lot of the grant",
        ("lots are what is available or held",),
        (
            Piece(
                "post_grant",
                "p_amount_micros, p_amount_micros - v_owed, p_priority",
                "p_amount_micros, p_amount_micros, p_priority",
            ),
        ),
    ),
    Mutation(
        "what is leaving is not written down",
        ("leaving is what was taken and has not left",),
        (Piece("take_credits", "p_amount_micros, take_credits.taken_micros,", "p_amount_micros, 0,"),),
    ),
    Mutation(
        "what is taken has left at once",
        ("no key can spend what has left",),
        (Piece("post_out_leaving", "if doorkey.is_limit_to_be_lowered(p_user_id) then", "if false then"),),
    ),
    Mutation(
        "what is taken has left though a worker is about to set another limit",
        ("no key can spend what has left",),
        (Piece("is_limit_to_be_lowered", "p.state = 'working'", "false"),),
    ),
    Mutation(
        "what expires has left at once",
        ("no key can spend what has left",),
        (Piece("take_from_lots", "k.markup > k.spendable_micros", "k.markup > 1e15"),),
    ),
    Mutation(
        "more is held than there is",
        ("nothing is negative", FAULT),
        (Piece("reserve_credits", "if v_account.available_micros < v_held then", "if false then"),),
        """alter table public.credit_accounts drop constraint credit_accounts_available_micros_check;
           alter table doorkey.credit_holds drop constraint amounts_are_possible""",
    ),
    Mutation(
        "who owes is given credits all the same",
        ("who owes has nothing",),
        (
            Piece(
                "post_grant",
                "v_owed := least((doorkey.lock_account(p_user_id)).debt_micros, p_amount_micros)",
                "perform doorkey.lock_account(p_user_id); v_owed := 0",
            ),
        ),
    ),
    Mutation(
        "held credits are left out of the limit",
        ("a limit is what was charged and what is left",),
        (
            Piece(
                "key_limit", "a.available_micros + a.held_micros - a.debt_micros", "a.available_micros - a.debt_micros"
            ),
        ),
    ),
    Mutation(
        "a fraction is forgotten",
        ("every cost is charged once",),
        (Piece("post_charge", "v.carried_micros - charged_micros, case", "0, case"),),
    ),
    Mutation(
        "tokens have no price",
        ("every cost is charged once",),
        (Piece("post_charge", "and p_tokens is not null", "and false"),),
    ),
    Mutation(
        "a key is not charged its calls",
        ("a key is charged what its calls cost", "what OpenRouter has is charged"),
        (Piece("apply_transaction", "c.key_cost_micros + new.key_cost_micros", "c.key_cost_micros"),),
    ),
    Mutation(
        "a key that was replaced is not charged its calls",
        ("a key is charged what its calls cost",),
        (Piece("settle_hold", "k.charged_cost_micros + p_cost_micros", "k.charged_cost_micros"),),
    ),
    Mutation(
        "what a key was charged is forgotten when another takes its place",
        ("a key is charged what its calls cost",),
        (Piece("take_key_cost", "doorkey.cost_of_key(p_key_hash)", "k.charged_cost_micros"),),
    ),
    Mutation(
        "what a key was charged is its successor's too",
        ("a key is charged what its calls cost",),
        (Piece("take_key_cost", "set key_cost_micros = 0", "set key_cost_micros = a.key_cost_micros"),),
    ),
    Mutation(
        "a call is charged each time it is settled",
        (FAULT,),
        (Piece("settle_hold", "if v_hold.state = 'settled' then", "if false then"),),
    ),
    Mutation(
        "a posting has no name",
        (REPEATED, OTHERWISE),
        (Piece("post_credits", "'operator:' || p_idempotency_key", "'operator:' || gen_random_uuid()"),),
    ),
    Mutation(
        "the content of a posting is not compared",
        (OTHERWISE,),
        (
            Piece(
                "post_grant",
                "if (v_known.user_id, v_known.amount_micros",
                "if false and (v_known.user_id, v_known.amount_micros",
            ),
        ),
    ),
    Mutation(
        "receipts are charged a second time, as unseen",
        ("only what nobody waits for is charged unseen", "what is charged twice is given back"),
        (
            Piece(
                "judge_usage",
                "v_usage.reported_micros - doorkey.cost_of_key(p_key_hash)",
                "v_usage.reported_micros - v_usage.unseen_micros",
            ),
        ),
    ),
    Mutation(
        "what was charged unseen is charged unseen again",
        ("only what nobody waits for is charged unseen", "what is charged twice is given back"),
        (
            Piece(
                "judge_usage",
                "v_usage.reported_micros - doorkey.cost_of_key(p_key_hash)",
                "v_usage.reported_micros - doorkey.cost_of_key(p_key_hash) + v_usage.unseen_micros",
            ),
        ),
    ),
    Mutation(
        "calls in flight are charged unseen",
        ("only what nobody waits for is charged unseen",),
        (
            Piece(
                "cost_in_flight",
                "coalesce(sum(h.amount_micros), 0) / p_markup",
                "coalesce(0 * sum(h.amount_micros), 0)",
            ),
        ),
    ),
    Mutation(
        "what is unseen is charged to nobody",
        ("what OpenRouter has is charged",),
        (Piece("judge_usage", "if v_moved > c_tolerance then", "if false then"),),
    ),
    Mutation(
        "what is unseen is not charged to the key",
        ("a key is charged what its calls cost", "what OpenRouter has is charged"),
        (Piece("post_unheld_cost", "null, null, v_is_in_use,", "null, null, false,"),),
    ),
    Mutation(
        "what was charged twice is kept",
        ("what is charged twice is given back",),
        (Piece("judge_usage", "elsif coalesce(v_surplus, 0) <= c_tolerance then", "elsif true then"),),
    ),
    Mutation(
        "what was charged twice is given back at the price of now",
        ("every cost is charged once",),
        (
            Piece(
                "return_unseen",
                "v_part * v_cost.markup",
                "v_part * (select p.markup from public.plans as p where p.id = v_account.plan_id)",
            ),
        ),
    ),
    Mutation(
        "a limit that is other than it was left is not mended",
        ("OpenRouter's key is as it was left",),
        (Piece("record_usage", "p.state = 'ready' and k.status <> 'deleted'", "false"),),
    ),
    Mutation(
        "two keys may each spend all there is",
        ("a limit is what was charged and what is left", "no key can spend what has left"),
        (Piece("key_limit", "v_share := v_share - v_elsewhere;", ""),),
    ),
    Mutation(
        "a key that was replaced keeps what it may spend",
        ("a limit is what was charged and what is left",),
        (Piece("key_limit", "else doorkey.held_through(v_key.key_hash) end", "else v_share end"),),
    ),
    Mutation(
        "whoever was taken over is forgotten when a key is looked at",
        ("no key can spend what has left", REPEATED),
        (Piece("recheck_key", "set is_doubtful = true", "set is_doubtful = true, confirm_at = now()"),),
    ),
    Mutation(
        "an account is not locked",
        (FAULT, REPEATED, "nothing is negative", "lots are what is available or held"),
        (
            Piece("lock_account", " for no key update", ""),
            Piece("reserve_credits", " for no key update", ""),
            Piece("settle_hold", "for no key update of a", ""),
        ),
    ),
)
