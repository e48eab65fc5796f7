from django.db import models


class User(models.Model):
    """A customer of one shop; not an account of `django.contrib.auth`."""

    email = models.EmailField()
    full_name = models.TextField(blank=True, default="")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["email"], name="users_user_email_unique")]

    def __str__(self) -> str:
        return self.email


class Address(models.Model):
    """Where a user's orders may be sent."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="addresses")
    street = models.TextField()
    city = models.TextField()
    country = models.CharField(max_length=2)
    is_default = models.BooleanField(default=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["user"], condition=models.Q(is_default=True), name="users_address_one_default"
            )
        ]

    def __str__(self) -> str:
        return f"{self.street}, {self.city}"
