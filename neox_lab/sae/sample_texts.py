"""Some plain English that a dictionary is tried on when it is loaded. Written for this package."""

from __future__ import annotations

TEXTS = (
    "The library stood at the corner of two quiet streets, a brick building with tall windows and "
    "a green door. Every morning at nine the old clerk unlocked it, swept the steps, and put the "
    "newspapers on the long table by the stove. Few people came before noon. In the afternoon the "
    "children arrived from school, left their wet coats on the chairs, and asked for books about "
    "ships, dinosaurs and the moon.",
    "Water boils at a lower temperature on a mountain than at the sea, because the pressure of the "
    "air is smaller there. A cook who makes soup at 3,000 metres must therefore wait longer, "
    "although the pot seems to boil as strongly as ever. In 1804 two French scientists went up in "
    "a balloon to measure how pressure, temperature and moisture change with height.",
    "def mean(numbers):\n    total = 0\n    for number in numbers:\n        total += number\n"
    "    return total / len(numbers)\n\n\nprint(mean([3, 5, 7]))  # prints 5.0\n",
    "Dear Anna, thank you for your letter of 12 March. We would be glad to see you and the "
    "children in the summer. The house is still not painted, and the garden is wild, but the "
    "apple trees are in flower and Thomas has repaired the boat. Please tell us when your train "
    "arrives; if it is the late one, John will wait at the station with the car. With love, Maria.",
    "The court found that the contract had been signed on 4 June 2009 and that the buyer had paid "
    "only half of the price, $12,500, within the agreed period. The seller was therefore entitled "
    "to keep the machine until the rest was paid. The appeal was dismissed with costs.",
    "In the second half the visitors played with more courage. Garcia hit the post after an hour, "
    "and five minutes later the same player scored from a corner to make it 1-1. Both teams had "
    "chances to win; in the end a draw was fair, and the crowd of 21,000 applauded them off.",
    "Preheat the oven to 180 degrees. Mix the flour, the sugar and a pinch of salt in a large "
    "bowl, then add the butter in small pieces and rub it in with your fingers until the mixture "
    "looks like sand. Add one egg and two spoons of cold water. Let the dough rest for half an "
    "hour before you roll it out.",
)
"""A few hundred tokens of several kinds."""
