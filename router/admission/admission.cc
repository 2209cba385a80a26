#include "router/admission/admission.h"

namespace terrace {

Admission::Admission(const AdmissionOptions& options, std::span<const std::string> tiers, AdmissionBook& book)
    : options_(options), book_(book), user_(book.Join(tiers, options)) {}

Admission::~Admission() { book_.Leave(user_); }

Admission::WaitId Admission::Enter(const Request& request, size_t pool, OnAdmitted on_admitted) {
  ++in_flight_;
  const auto on_entered = [this,
                           on_admitted = std::move(on_admitted)](StatusOr<AdmissionBook::Admitted> admitted) {
    if (admitted.ok()) return on_admitted(Ticket(this, *std::move(admitted)));
    on_admitted(admitted.status());
    --in_flight_;  // last, as in Release
  };
  return book_.Enter(request, PoolAt(pool), on_entered);
}

void Admission::Release(WaitId id) {
  book_.Release(id);
  --in_flight_;  // last: without requests in flight this object may be gone
}

}  // namespace terrace
