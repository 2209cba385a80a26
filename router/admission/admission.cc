#include "router/admission/admission.h"

namespace terrace {

StatusOr<Admission::Ticket> Admission::Admit() {
  if (is_closed_) return WithReason(Unavailable("the router is shutting down"), "draining");
  if (in_flight_.fetch_add(1) >= max_in_flight_) {
    Release();
    return WithReason(ResourceExhausted("too many requests in flight, limit ", max_in_flight_), "overloaded");
  }
  return Ticket(this);
}

}  // namespace terrace
