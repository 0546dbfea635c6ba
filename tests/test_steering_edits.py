"""Edits on bare tensors: exact answers first, then what must not change, then what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignscope.steering import Ablate, Add, Clamp, Edit, Interchange, Positions, Subspace
from alignscope.steering.edits import clamped
from alignscope.steering.sets import joint_clamp

H_B = torch.tensor([[[1.0, 2.0, 3.0]]])  # [1, 1, 3]
H_S = torch.tensor([[5.0, 0.0, 1.0]])  # [1, 3]
W = torch.tensor([[0.6, 0.8, 0.0]])
OBLIQUE = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0]])


def close(actual: torch.Tensor, expected: list[float], tolerance: float = 1e-6) -> bool:
    return torch.allclose(actual.flatten(), torch.tensor(expected).flatten(), atol=tolerance, rtol=0)


class TestExactAnswers:
    def test_interchange_takes_the_projection_of_the_source_and_leaves_the_rest(self):
        subspace = Subspace(W)
        new = Interchange(subspace, H_S)(H_B)
        assert close(new, [1.48, 2.64, 3.0])
        assert close(subspace.project(H_B), [2.2])
        assert close(subspace.project(new), [3.0])

    def test_ablation_leaves_no_projection(self):
        assert close(Ablate(Subspace(W))(H_B), [-0.32, 0.24, 3.0])

    def test_clamp_sets_the_projection(self):
        assert close(Clamp(Subspace(W), torch.tensor([-1.0]))(H_B), [-0.92, -0.56, 3.0])

    def test_rows_that_are_not_orthogonal_become_an_orthonormal_basis_of_their_span(self):
        assert close(Subspace(OBLIQUE).basis, [1.0, 0.0, 0.0, 0.0, 1.0, 0.0])

    def test_interchange_along_oblique_rows_reaches_the_source_in_both(self):
        source = torch.tensor([[1.0, 0.5, 7.0]])
        new = Interchange(Subspace(OBLIQUE), source)(torch.zeros(1, 1, 3))
        assert close(new, [1.0, 0.5, 0.0])
        assert close(new @ OBLIQUE.T, [1.0, 1.0])

    def test_add_adds_strength_times_the_vector(self):
        assert close(Add(torch.tensor([1.0, 0.0, -2.0]), 0.5)(H_B), [1.5, 2.0, 2.0])

    def test_a_joint_clamp_reaches_both_targets_and_a_sequence_only_the_last(self):
        first, second = (Clamp(Subspace(torch.tensor([w])), 1.0) for w in ([1.0, 0.0], [0.6, 0.8]))
        start = torch.zeros(1, 1, 2)
        assert close(joint_clamp([first, second])(start), [1.0, 0.5])
        assert close(second(first(start)), [1.24, 0.32])
        assert close(first(second(start)), [1.0, 0.8])

    @pytest.mark.parametrize(
        ("mode", "target", "expected"), [("min", 3.0, 3.0), ("min", 1.0, 2.2), ("max", 3.0, 2.2), ("max", 1.0, 1.0)]
    )
    def test_min_only_raises_and_max_only_lowers(self, mode, target, expected):
        subspace = Subspace(W)
        assert close(subspace.project(Clamp(subspace, target, mode)(H_B)), [expected])

    def test_a_clamp_is_an_affine_map(self):
        clamp = Clamp(Subspace(OBLIQUE), torch.tensor([2.0, -1.0]))
        matrix, bias = clamp.as_affine()
        assert torch.allclose(H_B @ matrix + bias, clamp(H_B), atol=1e-6)

    def test_a_row_of_the_batch_gets_its_own_target_also_when_generate_repeats_rows(self):
        subspace, targets = Subspace(W), torch.tensor([[1.0], [5.0]])
        for copies in (1, 3):
            new = Clamp(subspace, targets)(torch.randn(2 * copies, 4, 3))
            assert close(subspace.project(new[:copies]), [1.0] * 4 * copies, 1e-5)
            assert close(subspace.project(new[copies:]), [5.0] * 4 * copies, 1e-5)

    def test_a_row_of_the_batch_gets_its_own_strength(self):
        new = Add(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([2.0, -3.0]))(torch.zeros(2, 2, 3))
        assert close(new[..., 0], [2.0, 2.0, -3.0, -3.0])


numbers = st.floats(-5, 5, width=32)


@st.composite
def planes(draw) -> tuple[torch.Tensor, Subspace]:
    """Hidden states [2, 3, 6] and a subspace of rank 1 to 4."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    rank = draw(st.integers(1, 4))
    return torch.randn(2, 3, 6, generator=generator), Subspace(torch.randn(rank, 6, generator=generator))


class TestInvariances:
    @settings(max_examples=30, deadline=None)
    @given(planes(), numbers)
    def test_twice_is_once_and_the_orthogonal_part_stays(self, case, value):
        h, subspace = case
        clamp = Clamp(subspace, torch.full((subspace.rank,), value))
        once = clamp(h)
        assert torch.allclose(clamp(once), once, atol=1e-5)
        assert torch.allclose(subspace.project(once), torch.tensor(value), atol=1e-5)
        assert torch.allclose(Ablate(subspace)(once), Ablate(subspace)(h), atol=1e-5)

    @settings(max_examples=30, deadline=None)
    @given(planes())
    def test_a_source_that_is_the_base_changes_nothing(self, case):
        h, subspace = case
        state = h[:, 0]
        assert torch.allclose(Interchange(subspace, state)(state[:, None]), state[:, None], atol=1e-6)

    @settings(max_examples=30, deadline=None)
    @given(planes(), numbers)
    def test_flipping_the_direction_and_the_target_changes_nothing(self, case, value):
        h, subspace = case
        target = torch.full((subspace.rank,), value)
        flipped = Subspace(-subspace.basis)
        assert torch.allclose(flipped.basis, -subspace.basis, atol=1e-6)
        assert torch.allclose(Clamp(flipped, -target)(h), Clamp(subspace, target)(h), atol=1e-5)

    @settings(max_examples=30, deadline=None)
    @given(planes(), st.integers(0, 1000))
    def test_only_the_span_of_the_rows_matters(self, case, seed):
        h, subspace = case
        mix = torch.randn(subspace.rank, subspace.rank, generator=torch.Generator().manual_seed(seed))
        other = Subspace((mix + 3 * torch.eye(subspace.rank)) @ subspace.basis)
        assert torch.allclose(Ablate(other)(h), Ablate(subspace)(h), atol=1e-4)
        assert (other.basis @ other.basis.T - torch.eye(other.rank)).abs().max() < 1e-6

    def test_the_joint_solution_is_that_of_the_normal_equations(self):
        generator = torch.Generator().manual_seed(1)
        bases = [Subspace(torch.randn(k, 9, generator=generator)) for k in (1, 2, 1)]
        targets = [torch.randn(b.rank, generator=generator) for b in bases]
        h = torch.randn(2, 3, 9, generator=generator)
        rows, f = torch.cat([b.basis for b in bases]).double(), torch.cat(targets).double()
        step = (f - h.double() @ rows.T) @ torch.linalg.inv(rows @ rows.T) @ rows
        joint = joint_clamp([Clamp(b, t) for b, t in zip(bases, targets, strict=True)])
        assert torch.allclose(joint(h).double(), h.double() + step, atol=1e-5)

    @pytest.mark.parametrize("edit", [Ablate(Subspace(W)), Clamp(Subspace(W), 2.0), Interchange(Subspace(W), H_S)])
    def test_what_is_not_wanted_stays_to_the_bit_and_nothing_is_written(self, edit):
        h = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))
        before, where = h.clone(), torch.tensor([[True, False, True, False]])
        new = edit(h, where)
        assert torch.equal(h, before)
        assert torch.equal(new[~where], h[~where])
        assert torch.equal(new[where], edit(h)[where])
        assert not torch.equal(new[where], h[where])

    def test_rows_that_are_switched_off_stay_to_the_bit(self):
        h = torch.full((4, 2, 3), -0.0)
        new = Add(W[0], torch.tensor([0.0, 1.0]), rows=torch.tensor([False, True]))(h)
        assert torch.equal(new[:2].signbit(), h[:2].signbit())
        assert close(new[2:], [0.6, 0.8, 0.0] * 4)

    def test_half_precision_is_worked_on_in_float32(self):
        h = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
        subspace = Subspace(torch.randn(2, 64, generator=torch.Generator().manual_seed(1)))
        clamp = Clamp(subspace, torch.tensor([1.0, -2.0]))
        assert clamp(h).dtype == torch.bfloat16
        assert torch.equal(clamp(h), clamp(h.float()).bfloat16())

    def test_float64_is_kept(self):
        h = torch.randn(1, 2, 3, dtype=torch.float64)
        assert Ablate(Subspace(W))(h).dtype == torch.float64

    def test_the_gradient_reaches_the_basis_through_both_projections(self):
        basis = W.clone().requires_grad_()
        Interchange(Subspace.orthonormal(basis), H_S)(H_B)[..., 0].sum().backward()
        free = W.double().requires_grad_()
        clamped(H_B.double(), free, H_S.double() @ free.T)[..., 0].sum().backward()
        assert torch.allclose(basis.grad.double(), free.grad, atol=1e-6)
        assert basis.grad.abs().max() > 0.1

    def test_a_key_names_what_the_edit_does(self):
        subspace = Subspace(W)
        keys = [
            Ablate(subspace).key,
            Clamp(subspace, 1.0).key,
            Clamp(subspace, 2.0).key,
            Clamp(subspace, 2.0, "max").key,
            Clamp(subspace, 2.0, positions=Positions(prefix=1)).key,
            Clamp(Subspace(OBLIQUE[:1]), 2.0).key,
            Add(W[0]).key,
            Add(W[0], 2.0).key,
            Add(W[0], torch.tensor([2.0])).key,
        ]
        assert len(set(keys)) == len(keys)
        assert Clamp(Subspace(W.clone()), 1.0).key == keys[1]
        assert Interchange(subspace, H_S).key != Interchange(subspace, 2 * H_S).key

    def test_all_are_edits(self):
        assert all(
            isinstance(e, Edit)
            for e in (Add(W[0]), Ablate(Subspace(W)), Clamp(Subspace(W), 1.0), Interchange(Subspace(W), H_S))
        )


class TestRefusals:
    def test_dependent_rows_are_refused_with_their_singular_values(self):
        with pytest.raises(ValueError, match=r"not linearly independent; their singular values: 2\.24, "):
            Subspace(torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]]))

    def test_more_rows_than_dimensions_are_refused(self):
        with pytest.raises(ValueError, match="3 rows of width 2 are not linearly independent"):
            Subspace(torch.randn(3, 2, generator=torch.Generator().manual_seed(0)))

    @pytest.mark.parametrize("rows", [torch.zeros(1, 3), torch.tensor([[1.0, float("nan"), 0.0]]), torch.zeros(0, 3)])
    def test_rows_without_a_direction_are_refused(self, rows):
        with pytest.raises(ValueError, match=r"singular values|not finite|at least one row"):
            Subspace(rows)

    def test_a_basis_that_claims_to_be_orthonormal_is_checked(self):
        with pytest.raises(ValueError, match=r"not orthonormal: max \|S S\^T - I\| is 0\.6"):
            Subspace.orthonormal(OBLIQUE)

    @pytest.mark.parametrize("target", [torch.zeros(2), torch.zeros(3, 2), torch.tensor([float("nan")])])
    def test_a_target_that_does_not_fit_is_refused(self, target):
        with pytest.raises(ValueError, match=r"expected \[1\] or \[rows, 1\]|not finite"):
            Clamp(Subspace(W), target)

    def test_modes_that_order_are_for_rank_1(self):
        with pytest.raises(ValueError, match="rank 1, got rank 2"):
            Clamp(Subspace(OBLIQUE), torch.zeros(2), "min")
        with pytest.raises(ValueError, match="expected one of set, min, max"):
            Clamp(Subspace(W), 0.0, "both")

    def test_what_is_not_affine_is_refused(self):
        with pytest.raises(ValueError, match="one affine map"):
            Clamp(Subspace(W), 0.0, "min").as_affine()

    def test_another_width_is_refused(self):
        with pytest.raises(ValueError, match=r"shape \(1, 1, 4\): expected a width of 3"):
            Ablate(Subspace(W))(torch.zeros(1, 1, 4))
        with pytest.raises(ValueError, match="expected a width of 3"):
            Interchange(Subspace(W), torch.zeros(1, 4))

    def test_values_for_another_number_of_rows_are_refused(self):
        with pytest.raises(ValueError, match="for 2 rows, and a batch of 3"):
            Clamp(Subspace(W), torch.zeros(2, 1))(torch.zeros(3, 1, 3))

    def test_dependent_directions_have_no_joint_solution(self):
        clamps = [Clamp(Subspace(torch.tensor([w])), 1.0) for w in ([1.0, 0.0], [0.0, 1.0], [0.6, 0.8])]
        with pytest.raises(ValueError, match="3 rows of width 2 are not linearly independent"):
            joint_clamp(clamps)
