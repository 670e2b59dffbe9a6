# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""A shop in SQLite, anew for each rollout, that takes nothing but the JSON types that it declares, and its errands."""

import json
import random
import sqlite3
from typing import Any


Row = dict[str, Any]

TABLES = """
CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT, price REAL, stock INTEGER);
CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer INTEGER, item INTEGER, quantity INTEGER, status TEXT);
"""
ITEMS = ("apple", "book", "candle", "drum", "envelope", "fork", "glove", "hammer", "kettle", "lamp", "mirror", "pen")
CUSTOMERS = ("Ada", "Ben", "Cleo", "Dan")
EXAMPLES = (
    ("Search for a broom.", "search_items", {"name": "broom"}),
    ("Buy 3 of item 58.", "place_order", {"item_id": 58, "quantity": 3}),
)
TRAIN_ERRANDS, TEST_ERRANDS = 512, 64


class Shop:
    """
    One customer's visit. The public methods are the model's tools; an error of theirs leaves the shop as it was.

    The row says what is in the shop (`shop`, a seed) and what is to be done there (`kind`, `number`, `quantity`).
    """

    def reset(self, shop: int, kind: str, number: int, quantity: int, **row: Any) -> None:
        # A privileged source may look at the final state from a thread of its own
        self.database = sqlite3.connect(":memory:", check_same_thread=False)
        self.database.executescript(TABLES)
        stock, orders = contents(shop)
        self.database.executemany("INSERT INTO items VALUES (?, ?, ?, ?)", stock)
        self.database.executemany("INSERT INTO customers VALUES (?, ?)", enumerate(CUSTOMERS, 1))
        self.database.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?)", orders)
        self.expected = expected_orders(orders, kind, number, quantity)

    def search_items(self, name: str) -> str:
        """
        Find items by name.

        Args:
            name: Part of the name.
        """
        if not isinstance(name, str):
            raise TypeError(f"name is {name!r}: it must be a JSON string.")
        rows = self.database.execute("SELECT id, name, price, stock FROM items WHERE name LIKE ?", (f"%{name}%",))
        return json.dumps([dict(zip(("item_id", "name", "price", "stock"), row, strict=True)) for row in rows])

    def get_order(self, order_id: int) -> str:
        """
        Look at an order.

        Args:
            order_id: Number of the order.
        """
        row = self._one("SELECT item, quantity, status FROM orders WHERE id = ?", "order_id", order_id)
        return json.dumps(dict(zip(("item_id", "quantity", "status"), row, strict=True)))

    def place_order(self, item_id: int, quantity: int) -> str:
        """
        Order an item.

        Args:
            item_id: Number of the item.
            quantity: How many.
        """
        (stock,) = self._one("SELECT stock FROM items WHERE id = ?", "item_id", item_id)
        _check_integer("quantity", quantity)
        if not 0 < quantity <= stock:
            raise ValueError(f"quantity is {quantity}: there are {stock}.")
        self.database.execute("UPDATE items SET stock = stock - ? WHERE id = ?", (quantity, item_id))
        order = self.database.execute(
            "INSERT INTO orders (customer, item, quantity, status) VALUES (1, ?, ?, 'open')", (item_id, quantity)
        )
        return f"Order {order.lastrowid} is placed."

    def cancel_order(self, order_id: int) -> str:
        """
        Cancel an open order.

        Args:
            order_id: Number of the order.
        """
        item, quantity, status = self._one(
            "SELECT item, quantity, status FROM orders WHERE id = ?", "order_id", order_id
        )
        if status != "open":
            raise ValueError(f"Order {order_id} is {status}.")
        self.database.execute("UPDATE orders SET status = 'cancelled' WHERE id = ?", (order_id,))
        self.database.execute("UPDATE items SET stock = stock + ? WHERE id = ?", (quantity, item))
        return f"Order {order_id} is cancelled."

    def get_reward(self) -> float:
        """1 if the orders are exactly those that the errand should have led to."""
        return float(self._orders() == self.expected)

    def __str__(self) -> str:
        """The shop as it is, for a teacher: no tool, as its name is no public one."""
        items = self.database.execute("SELECT id, name, stock FROM items ORDER BY id")
        orders = self.database.execute("SELECT id, item, quantity, status FROM orders ORDER BY id")
        lines = [f"Item {number} ({name}): {stock} in stock." for number, name, stock in items]
        lines += [f"Order {number}: {count} of item {item}, {status}." for number, item, count, status in orders]
        return "\n".join(lines)

    def _orders(self) -> list[tuple]:
        return self.database.execute("SELECT item, quantity, status FROM orders ORDER BY id").fetchall()

    def _one(self, query: str, name: str, number: int) -> tuple:
        _check_integer(name, number)
        row = self.database.execute(query, (number,)).fetchone()
        if row is None:
            raise ValueError(f"There is no {name} {number}.")
        return row


def _check_integer(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {value!r}: it must be a JSON integer.")


def contents(shop: int) -> tuple[list[tuple], list[tuple]]:
    """Items and orders of a shop, by its seed: the rows of the tables `items` and `orders`."""
    rng = random.Random(shop)
    names = rng.sample(ITEMS, 4)
    numbers = rng.sample(range(10, 60), len(names))
    items = [(number, name, rng.randint(2, 40), rng.randint(5, 9)) for number, name in zip(numbers, names, strict=True)]
    customers = [rng.randint(1, len(CUSTOMERS)) for _ in range(2)]
    orders = [(60 + i, customer, numbers[i], rng.randint(1, 4), "open") for i, customer in enumerate(customers)]
    return items, orders


def expected_orders(orders: list[tuple], kind: str, number: int, quantity: int) -> list[tuple]:
    """Item, quantity and status of all orders once the errand is done."""
    done = [(item, count, "cancelled" if kind == "cancel" and own == number else status)
            for own, _, item, count, status in orders]  # fmt: skip
    return [*done, (number, quantity, "open")] if kind == "buy" else done


def errand(shop: int) -> Row:
    """A row for the shop of that seed. `quantity` is 0 where it has no meaning."""
    rng = random.Random(f"errand {shop}")
    items, orders = contents(shop)
    kind = rng.choice(("buy", "cancel"))
    number, quantity = (rng.choice(items)[0], rng.randint(1, 4)) if kind == "buy" else (rng.choice(orders)[0], 0)
    buy = (f"Buy {quantity} of item {number}.", f"I want {quantity} pieces of item {number}.")
    cancel = (f"Cancel order {number}.", f"I do not need order {number} any more.")
    question = rng.choice(buy if kind == "buy" else cancel)
    return {"prompt": prompt(question), "shop": shop, "kind": kind, "number": number, "quantity": quantity}


def prompt(question: str) -> list[Row]:
    """The question after two that were answered by calls, in text: a column of messages has no room for calls."""
    messages = []
    for asked, name, arguments in EXAMPLES:
        text = f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": text}]
    return [*messages, {"role": "user", "content": question}]


def task(seed: int = 0) -> dict[str, list[Row]]:
    """Errands in shops of their own. The questions may be alike; the shops are not."""
    first = seed * (TRAIN_ERRANDS + TEST_ERRANDS)
    rows = [errand(first + i) for i in range(TRAIN_ERRANDS + TEST_ERRANDS)]
    return {"train": rows[TEST_ERRANDS:], "test": rows[:TEST_ERRANDS]}
