"""Optimizers that are simpler than Adam (optim.py), for first trainings and for comparison.

    for step in range(100):
        optimizer.zero_grad()
        loss(x, y).backward()
        optimizer.step(lr=0.1)

Both work on flat buffers (flat_buffers.py) with any arrays, on the CPU and on a GPU. Parameters that are frozen keep
their values and their state. train_gpt2.py uses Adam; its checkpoints do not know the state of these.
"""

from tinygrad2.backend import large_zeros, xp_of
from tinygrad2.writes import wrote


class _Optimizer:
    def __init__(self, flat, weight_decay):
        self.flat, self.weight_decay = flat, weight_decay

    def zero_grad(self):
        """From now on the gradient is zero."""
        self.flat.zero_grad()

    def step(self, lr, grad_scale=1.0):
        """Update every parameter that is not frozen.

        `grad_scale` multiplies the gradients (see optim.clip_scale), a float or 0-d array. Raises UserError if all
        parameters are frozen.
        """
        flat, grad = self.flat, self.flat.grad
        flat.require_trainable()
        for part in flat.trainable(slice(0, flat.size)):
            p, g = flat.data[part], grad[part] * grad_scale
            if self.weight_decay:
                g += self.weight_decay * p
            self.update(part, p, g, lr)
        wrote(flat.data)  # a graph of the old weights is of no use now, and its backward says so

    def _zeros(self):
        return large_zeros(xp_of(self.flat.data), self.flat.size, self.flat.data.dtype)

    def update(self, part, p, g, lr):
        raise NotImplementedError


class SGD(_Optimizer):
    """Gradient descent, with momentum if that is above 0.

        g <- g + weight_decay p
        u <- momentum u + g                      u starts at zero; without momentum it is g
        p <- p - lr u

    With a constant gradient u grows to g / (1 - momentum): momentum 0.9 makes steps ten times as long where the
    gradient keeps its direction, and averages it where it does not. torch.optim.SGD computes the same. Robbins and
    Monro, "A stochastic approximation method", 1951; Polyak, "Some methods of speeding up the convergence of iteration
    methods", 1964 (the heavy ball); Sutskever et al., "On the importance of initialization and momentum in deep
    learning", ICML 2013.

    flat            FlatBuffers: parameters and gradients
    momentum        0 <= momentum < 1
    weight_decay    added to the gradient (L2), of all parameters, biases included
    u               the velocity, laid out like the buffers, of their dtype; None without momentum

    Raises ValueError for a momentum outside of its range.
    """

    def __init__(self, flat, momentum=0.0, weight_decay=0.0):
        super().__init__(flat, weight_decay)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), not {momentum}: at 1 nothing would ever slow down")
        self.momentum = momentum
        self.u = self._zeros() if momentum else None

    def update(self, part, p, g, lr):
        """One step in place on a part of the buffers: parameters p (n,), scaled gradients g (n,)."""
        if self.u is not None:
            u = self.u[part]
            u *= self.momentum
            u += g
            g = u
        p -= lr * g


class RMSprop(_Optimizer):
    """Gradient descent with a step size of its own for every parameter: the gradient divided by its usual size.

        g <- g + weight_decay p
        v <- beta v + (1 - beta) g^2             v starts at zero
        p <- p - lr g / (sqrt(v) + eps)

    Where gradients are always small, steps are as long as where they are large: about lr. v is young at first, so
    that the first step is lr / sqrt(1 - beta) long, ten times lr for beta = 0.99; Adam corrects that, and averages g.
    torch.optim.RMSprop computes the same, and calls beta alpha. Tieleman and Hinton, "Lecture 6.5: rmsprop", COURSERA:
    Neural Networks for Machine Learning, 2012.

    flat            FlatBuffers: parameters and gradients
    beta            0 <= beta < 1, how slowly v follows
    eps             above 0: steps where the gradient has always been zero
    weight_decay    added to the gradient (L2), of all parameters, biases included
    v               mean square of the gradient, laid out like the buffers, of their dtype

    Raises ValueError for a beta or an eps outside of its range.
    """

    def __init__(self, flat, beta=0.99, eps=1e-8, weight_decay=0.0):
        super().__init__(flat, weight_decay)
        if not 0 <= beta < 1:
            raise ValueError(f"beta must be in [0, 1), not {beta}: at 1 v would stay zero")
        if not eps > 0:
            raise ValueError(f"eps must be above 0, not {eps}: where gradients are zero it is what is divided by")
        self.beta, self.eps, self.v = beta, eps, self._zeros()

    def update(self, part, p, g, lr):
        """One step in place on a part of the buffers: parameters p (n,), scaled gradients g (n,)."""
        v = self.v[part]
        v *= self.beta
        v += (1 - self.beta) * (g * g)
        p -= lr * (g / (xp_of(p).sqrt(v) + self.eps))
